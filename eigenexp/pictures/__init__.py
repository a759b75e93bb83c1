"""Pictures: read, recorded, kept; many of them as the source of a study."""

from eigenexp.pictures.picture import Picture, bundled_pictures, load_picture

__all__ = ["Picture", "bundled_pictures", "load_picture"]
