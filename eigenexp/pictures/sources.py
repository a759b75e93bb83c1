"""The pictures of a study: a folder, a glob, a list, a tensor, a Dataset, a DataModule."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputError, InputTypeError
from eigenexp.pictures.bundled import bundled_pictures
from eigenexp.pictures.paths import absolute_glob, expand_home
from eigenexp.pictures.picture import Picture, load_picture

__all__ = ["SUFFIXES", "PictureSource", "find_pictures", "left_out", "picture_sources"]

_KINDS = (
    "avif bmp dib gif j2k jp2 jpeg jpf jpg jpx mpo npy pbm pcx pgm png pnm ppm pt pth rgb "
    "safetensors sgi tga tif tiff webp"
)
SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""Endings of the files that are pictures in a folder."""

_SPLITS = ("predict", "test", "val", "train")


@dataclass(frozen=True)
class PictureSource:
    """One picture that is loaded when its turn comes.

    Attributes
    ----------
    name
        Short, for tables and file names; safe as a file name.
    where
        What it is loaded from: a path, a bundled picture's name, ``dataset[3]``.
    load
        Returns the picture.
    """

    name: str
    where: str
    load: Callable[[], Picture]


def find_pictures(path: str | Path | Sequence[str | Path]) -> list[str]:
    """Return the picture files that ``path`` stands for, in a fixed order.

    Parameters
    ----------
    path
        A folder (its picture files, by :data:`SUFFIXES`, hidden ones left out, sorted by name; what
        else it holds is told by :func:`left_out`, a link to nothing is a picture that fails); a
        glob (``photos/**/*.png``, sorted); one file or bundled picture; or a list of all these, in
        its own order. A picture named twice is an error.

    Raises
    ------
    ImageError
        When nothing is found, or something twice.
    InputTypeError
        When it is none of these.
    """
    if not isinstance(path, (str, Path)) and not isinstance(path, Sequence):
        raise InputTypeError(
            f"image.path: expected a folder, a glob, or a list, got {type(path).__name__}"
        )
    if isinstance(path, (str, Path)) and str(path).strip():
        _check_exists(path)
    parts = [path] if isinstance(path, (str, Path)) else list(path)
    found = [file for part in parts for file in _expand(part)]
    if not found:
        raise ImageError("image.path: expected at least one picture, got an empty list")
    twice = sorted({file for file in found if found.count(file) > 1}) if len(found) < 2000 else []
    if twice or len(set(found)) != len(found):
        example = twice[0] if twice else "several"
        raise ImageError(f"image.path: expected each picture once, got {example} twice")
    return found


def _check_exists(path: str | Path) -> None:
    """Refuse a path that names nothing; in a list a missing file is that picture's failure."""
    place = expand_home(path).absolute()
    if place.exists() or place.is_symlink() or str(path) in bundled_pictures():
        return
    if absolute_glob(path) is not None:
        return
    here = sorted(p.name for p in place.parent.glob("*")) if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, here, n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else "check the path, or quote a glob"
    raise ImageError(
        f"image.path: expected a folder, a glob or a list of pictures, got {str(path)!r}: there is "
        f"no {place}; {advice}"
    )


def _expand(part: Any) -> list[str]:
    if not isinstance(part, (str, Path)) or not str(part).strip():
        raise InputTypeError(f"image.path: expected paths or names, got {part!r}")
    if isinstance(part, str) and part in bundled_pictures():
        return [part]
    # Absolute, so that a study goes on from any folder.
    folder = expand_home(part).absolute()
    text = str(folder)
    if folder.is_dir():
        files = [p for p in folder.iterdir() if _is_file(p) and _is_picture(p)]
        if not files:
            raise ImageError(
                f"{folder}: expected a folder with pictures ({' '.join(sorted(SUFFIXES))}), got "
                "none; subfolders are taken by a glob: folder/**/*.png"
            )
        return sorted(str(p) for p in files)
    pattern = absolute_glob(part)
    if pattern is not None:
        files = [Path(p) for p in glob.glob(pattern, recursive=True)]
        chosen = sorted(str(p) for p in files if _is_file(p) and _is_picture(p))
        if not chosen:
            raise ImageError(f"{text}: expected a glob that some picture fits, got none that does")
        return chosen
    return [text]


def left_out(path: str | Path | Sequence[str | Path]) -> list[str]:
    """Return the names of the files in folders of ``path`` that are not taken as pictures, sorted.

    Hidden files and subfolders do not count.
    """
    parts = [path] if isinstance(path, (str, Path)) else list(path)
    folders = [expand_home(part) for part in parts if str(part) not in bundled_pictures()]
    return sorted(
        file.name
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if not file.is_dir() and not file.name.startswith(".") and not _is_picture(file)
    )


def _is_file(path: Path) -> bool:
    """Tell whether it is a file, or a link to nothing: that picture fails rather than vanish."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def picture_sources(pictures: Any, **options: Any) -> list[PictureSource]:
    """Return one source a picture.

    Parameters
    ----------
    pictures
        - what :func:`find_pictures` takes;
        - a tensor ``(P, C, H, W)``, or a list of tensors, arrays, paths or
          :class:`~eigenexp.pictures.picture.Picture`;
        - a map-style ``torch.utils.data.Dataset`` whose items are a picture, a tuple that begins
          with one, or a mapping with ``"image"``;
        - a Lightning ``DataModule``: the first of its predict, test, val and train loaders that
          there is gives its dataset.
    options
        ``crop``, ``resize``, ``channels``, ``value_range``, ``dtype`` of
        :func:`eigenexp.pictures.picture.load_picture`.

    Raises
    ------
    ImageError, InputError, InputTypeError
        When there are none, or of a kind that cannot be counted and asked for again.
    """
    load = partial(load_picture, **options)
    if isinstance(pictures, (str, Path)) or _all(pictures, (str, Path)):
        return [_file(path, load) for path in find_pictures(pictures)]
    if isinstance(pictures, Tensor):
        if pictures.ndim != 4 or len(pictures) == 0:
            raise ImageError(
                f"pictures: expected a tensor (P, C, H, W), got shape {tuple(pictures.shape)}"
            )
        pictures = list(pictures.detach().clone().unsqueeze(1))
    if _is_datamodule(pictures):
        pictures = _dataset_of(pictures)
    if isinstance(pictures, (list, tuple)):
        if not pictures:
            raise ImageError("pictures: expected at least one, got an empty list")
        return [_item(i, entry, load) for i, entry in enumerate(pictures)]
    if not hasattr(pictures, "__getitem__") or not hasattr(pictures, "__len__"):
        raise InputTypeError(
            "pictures: expected a folder, a list, a tensor, a Dataset with a length and items by "
            f"number, or a DataModule, got {type(pictures).__name__}"
        )
    if len(pictures) == 0:
        raise ImageError("pictures: expected at least one, got an empty dataset")
    return [
        PictureSource(f"{i}", f"dataset[{i}]", partial(_from_dataset, pictures, i, load))
        for i in range(len(pictures))
    ]


def _all(value: Any, kinds: tuple[type, ...]) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(v, kinds) for v in value)
    )


def _file(path: str, load: Callable[..., Picture]) -> PictureSource:
    return PictureSource(_safe(Path(path).stem), path, partial(load, path))


def _item(index: int, entry: Any, load: Callable[..., Picture]) -> PictureSource:
    if isinstance(entry, (str, Path)):
        return _file(str(entry), load)
    if isinstance(entry, Picture):
        return PictureSource(_safe(entry.name), str(entry.record["source"]), lambda: entry)
    return PictureSource(f"{index}", f"pictures[{index}]", partial(load, entry))


def _safe(name: str) -> str:
    return re.sub(r"[^\w\-.]", "_", name).strip(".")[:60] or "picture"


def _from_dataset(dataset: Any, index: int, load: Callable[..., Picture]) -> Picture:
    item = dataset[index]
    if isinstance(item, Mapping):
        if "image" not in item:
            raise ImageError(
                f"dataset[{index}]: expected a mapping with 'image', got {sorted(map(str, item))}"
            )
        item = item["image"]
    elif isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Picture):
        return item
    return load(item)


def _is_datamodule(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("setup", "prepare_data"))


def _dataset_of(module: Any) -> Any:
    """Return the dataset behind a DataModule's first loader, in the order predict … train."""
    module.prepare_data()
    for split in _SPLITS:
        stage = {"val": "validate", "train": "fit"}.get(split, split)
        module.setup(stage)
        try:
            loader = getattr(module, f"{split}_dataloader")()
        except Exception as error:
            # Lightning's own base raises where a loader is not defined.
            if type(error).__name__ == "MisconfigurationException":
                continue
            raise
        if isinstance(loader, (list, tuple)) and len(loader) == 1:
            loader = loader[0]
        if loader is None or (isinstance(loader, (list, tuple)) and not loader):
            continue
        dataset = getattr(loader, "dataset", None)
        if dataset is None or isinstance(dataset, torch.utils.data.IterableDataset):
            raise InputTypeError(
                f"{split}_dataloader: expected a DataLoader over a dataset with items by number, "
                f"got {type(dataset or loader).__name__}; pass the pictures as a list"
            )
        return dataset
    raise InputError("datamodule: expected a predict, test, val or train loader, got none")
