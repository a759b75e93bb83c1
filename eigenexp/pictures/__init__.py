"""Pictures: read, recorded, kept; many of them as the source of a study."""

from eigenexp.pictures.bundled import bundled_pictures
from eigenexp.pictures.picture import Picture, load_picture

__all__ = ["Picture", "bundled_pictures", "load_picture"]
