"""The picture of a run as a file: exact values and record, verified when read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from eigenexp.errors import ImageError
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.reading import read_regular
from eigenexp.storage.atomic import write_atomic
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.storage.plain import plain

__all__ = ["PICTURE_FILE", "load_saved_picture", "save_picture"]

PICTURE_FILE = "picture.safetensors"
_HEADER = "eigenexp.picture"
_TENSOR = "picture"


def save_picture(picture: Picture | Tensor, path: str | os.PathLike[str]) -> Path:
    """Write the picture's values, name and record to ``path``, atomically.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    from safetensors.torch import save

    tensor = picture.tensor if isinstance(picture, Picture) else picture
    tensor = tensor.detach().cpu().contiguous()
    record = picture.record if isinstance(picture, Picture) else {"shape": list(tensor.shape)}
    name = picture.name if isinstance(picture, Picture) else "picture"
    facts = {"name": name, "record": {**plain(record), "sha256": tensor_sha256(tensor)}}
    return write_atomic(path, save({_TENSOR: tensor}, {_HEADER: json.dumps(facts)}))


def load_saved_picture(path: str | os.PathLike[str], sha256: str | None = None) -> Picture:
    """Read a picture written by :func:`save_picture`; nothing in it is executed.

    Parameters
    ----------
    path
        The file.
    sha256
        What the picture's hash has to be; by default the one the file itself tells.

    Raises
    ------
    ImageError
        When the file is missing, foreign or damaged, or its values are not those of the hash.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read_regular(Path(path))
    try:
        tensor = load(content)[_TENSOR]
        facts = _facts(content)
        record, name = dict(facts["record"]), str(facts["name"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ImageError(
            f"{path}: expected a picture saved by eigenexp, got another file "
            f"({type(error).__name__}); use the file as it was saved"
        ) from error
    wanted = sha256 or record.get("sha256")
    got = tensor_sha256(tensor)
    if got != wanted:
        raise ImageError(
            f"{path}: expected the picture with SHA-256 {str(wanted)[:12]}…, got {got[:12]}…; "
            "it is damaged or belongs to another run"
        )
    return Picture(tensor, name, {**record, "sha256": got})


def _facts(content: bytes) -> dict[str, Any]:
    """Return our JSON from the header, whose bounds safetensors has checked by now."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"][_HEADER])
    if not isinstance(facts, dict):
        raise TypeError("expected a mapping")
    return facts
