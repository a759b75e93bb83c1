"""Saved ``Eigendistortion`` files: ours and plenoptic's, in one layout, read without trust.

A file is a ``torch.save`` of plain containers with plenoptic's keys at its top; what is ours alone
(certificates, the state to go on from) lies below ``save_metadata``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenexp.compat.orthogonal_iteration import OrthogonalIteration
from eigenexp.compat.state import RESULTS, SPECTRUM_TENSORS, Search, State
from eigenexp.errors import CheckpointError, InputError, InputTypeError, first_line, summary
from eigenexp.operators.calling import uncompiled
from eigenexp.operators.noise import Gaussian
from eigenexp.operators.perturbations import Everything
from eigenexp.operators.responses import response_values
from eigenexp.spectrum import PairStatus, Spectrum, StopReason
from eigenexp.storage.archives import archive_fault
from eigenexp.storage.atomic import replacing

__all__ = ["Content", "examine_saved_synthesis", "read", "write"]

METADATA = "save_metadata"
RESULT_KEYS = tuple(f"_{name}" for name in RESULTS)
KEYS = ("_loaded", "_image_shape", "_image_flat", "_image", "_representation_flat", *RESULT_KEYS,
        "_model")  # fmt: skip
PLENOPTIC_NAMES = (
    "plenoptic.Eigendistortion",
    "plenoptic.synthesize.Eigendistortion",
    "plenoptic.synthesize.eigendistortion.Eigendistortion",
)
FACTS = ("scale", "tol", "num_products", "num_verification_products", "null_space_dimension",
         "method", "dimension")  # fmt: skip


@dataclass(frozen=True)
class Content:
    """What a file holds, its shapes and types checked."""

    path: str
    name: str
    state: State
    measured: dict[str, str]
    model_name: str | None
    model_output: Tensor
    extras: dict[str, Any]


# -- writing -----------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str],
    state: State,
    *,
    name: str | None,
    model: Callable[[Tensor], Any],
    measured: dict[str, str],
    extras: Mapping[str, Any],
) -> None:
    """Write what an ``Eigendistortion`` has found to ``path``, atomically.

    Parameters
    ----------
    path
        A path, or a file open for writing.
    state
        What was found.
    name
        Of the object's class, see :func:`object_name`.
    model
        Its name is written, and its response at the picture.
    measured
        Noise and perturbations, in words.
    extras
        Attributes somebody added to the object.
    """
    image = state.image.detach()
    with torch.no_grad(), uncompiled():
        output = model(image)
    response = response_values(output).detach()
    content: dict[str, Any] = {
        METADATA: {
            "plenoptic_version": f"none (eigenexp {_own()})",
            "torch_version": str(torch.__version__),
            "synthesis_object": name,
            "eigenexp_version": _own(),
            **measured,
            "spectrum": None if state.spectrum is None else _pack(state.spectrum),
            "solver": _search_content(state.search),
        },
        "_loaded": state.loaded,
        "_image_shape": torch.Size(state.image_shape),
        "_image_flat": image.reshape(-1, 1),
        "_image": image,
        "_representation_flat": response.unsqueeze(1),
        **{key: getattr(state, name) for key, name in zip(RESULT_KEYS, RESULTS, strict=True)},
        **{key: _storable(key, value) for key, value in extras.items()},
        "_model": (
            object_name(model),
            ("_image",),
            output.detach() if isinstance(output, Tensor) else response,
        ),
    }
    if hasattr(path, "write"):
        torch.save(content, path)
        return
    with replacing(Path(path)) as file:
        torch.save(content, file)


def _search_content(search: Search | None) -> dict[str, Any] | None:
    if search is None:
        return None
    return {"kind": _storable("solver options", search.kind), "state": search.state()}


def _own() -> str:
    from eigenexp import __version__

    return __version__


def object_name(thing: Any) -> str | None:
    """Return the dotted name of a function, or of an object's class; our own class is short."""
    if thing is None:
        return None
    if hasattr(thing, "__name__") and hasattr(thing, "__module__"):
        return f"{thing.__module__}.{thing.__name__}"
    kind = type(thing)
    if kind.__module__ == "eigenexp.compat.eigendistortion":
        return f"eigenexp.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def _storable(key: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_storable(key, v) for v in value)
    if type(value) is dict:
        return {_storable(key, k): _storable(key, v) for k, v in value.items()}
    raise InputTypeError(
        f"save: expected attribute {key!r} to hold tensors, numbers, strings or plain containers, "
        f"got {type(value).__name__}; delete it or store plain values"
    )


def _pack(spectrum: Spectrum) -> dict[str, Any]:
    return {
        **{name: getattr(spectrum, name) for name in SPECTRUM_TENSORS},
        **{name: getattr(spectrum, name) for name in FACTS},
        "status": [s.value for s in spectrum.status],
        "stop_reason": spectrum.stop_reason.value,
        "notes": list(spectrum.notes),
    }


# -- reading -----------------------------------------------------------------------------------


def read(path: Any, map_location: Any, options: Mapping[str, Any]) -> Content:
    """Read a file and check that every part has the type and shape it must have.

    Raises
    ------
    CheckpointError
        When the file is truncated, foreign, hostile or damaged (a ``ValueError``).
    FileNotFoundError
        When there is none.
    """
    raw = _raw(path, map_location, options)
    try:
        return _parse(str(path), raw)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise _foreign(path, summary(error)) from error


def _foreign(path: Any, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a file saved by Eigendistortion (eigenexp, or plenoptic 1.2 and later), "
        f"got {first_line(why)}; use the file as it was saved, and map_location='cpu' for one from "
        "a GPU"
    )


def _raw(path: Any, map_location: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("weights_only") is False or "pickle_module" in options:
        raise InputError(
            "load: expected weights_only=True and no pickle_module, got a request to execute what "
            "a file says; leave both out"
        )
    if not hasattr(path, "read") and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a saved file, got no file there")
    if not hasattr(path, "read"):
        with open(path, "rb") as file:
            fault = archive_fault(file)
        if fault is not None:
            raise _foreign(path, fault)
    try:
        with warnings.catch_warnings():
            # What torch has to say about a foreign archive is said once, in the error below.
            warnings.simplefilter("error")
            raw = torch.load(path, map_location=map_location, **{**options, "weights_only": True})
    except Exception as error:  # a hostile pickle can raise anything at all
        raise _foreign(path, summary(error)) from error
    if type(raw) is not dict or not isinstance(raw.get(METADATA), dict):
        raise _foreign(path, f"a {type(raw).__name__} without {METADATA!r}")
    return raw


def _parse(path: str, raw: dict[str, Any]) -> Content:
    metadata = raw[METADATA]
    missing = [key for key in ("_image", "_model", *RESULT_KEYS) if key not in raw]
    name = metadata.get("synthesis_object")
    if not isinstance(name, str) or (missing and "igendistortion" in name):
        raise _foreign(path, f"a file without {', '.join(missing) or 'the name of its class'}")
    if missing:
        raise _foreign(path, f"a saved {name}")
    image = raw["_image"]
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.numel() == 0:
        raise _foreign(path, "a picture that is no floating-point tensor")
    if not bool(torch.isfinite(image).all()) or (image.ndim > 1 and image.shape[0] != 1):
        raise _foreign(path, "a picture with NaN, inf or several pictures in it")
    model_name, _, output = raw["_model"]
    if not isinstance(output, Tensor) or not isinstance(model_name, str | None):
        raise _foreign(path, "no name and response of the model")
    considered = str(metadata.get("perturbations", Everything())) != str(Everything())
    state = State(image.detach(), **_results(path, raw, image, considered), loaded=True)
    state = replace(
        state,
        spectrum=_unpack(metadata.get("spectrum"), state.image_shape),
        search=_search(metadata.get("solver"), None if considered else image.numel()),
    )
    return Content(
        path=path,
        name=name,
        state=state,
        # Files of before, and plenoptic's, are of F = JᵀJ and every change.
        measured={
            "noise": str(metadata.get("noise", Gaussian())),
            "perturbations": str(metadata.get("perturbations", Everything())),
        },
        model_name=model_name,
        model_output=output.detach(),
        extras={k: v for k, v in raw.items() if k not in KEYS and k != METADATA},
    )


def _results(path: str, raw: dict[str, Any], image: Tensor, considered: bool) -> dict[str, Any]:
    jacobian, vectors, values, index = (raw[key] for key in RESULT_KEYS)
    n = image.numel()
    if jacobian is not None:
        columns = n if not isinstance(jacobian, Tensor) else jacobian.shape[-1]
        fits = 0 < columns <= n if considered else columns == n
        if not isinstance(jacobian, Tensor) or jacobian.ndim != 2 or not fits:
            raise _foreign(path, f"a Jacobian that has not {n} columns")
        jacobian = jacobian.detach()
    if vectors is None or isinstance(vectors, list):
        return {"jacobian": jacobian}
    if not all(isinstance(t, Tensor) for t in (vectors, values, index)):
        raise _foreign(path, "eigenvalues or an index that are no tensors")
    # plenoptic leaves a 0-d eigenvalue for one pair, and floats in the index after .to(float64).
    values, index = values.detach().reshape(-1), index.detach().reshape(-1).to(torch.int64)
    vectors = vectors.detach()
    if not len(vectors) == len(values) == len(index) or vectors[0].numel() != n:
        raise _foreign(path, f"{len(vectors)} vectors for {len(values)} values, {n} pixels each")
    if bool(((index < 0) | (index >= n)).any()):
        raise _foreign(path, f"an index outside 0 to {n - 1}")
    # plenoptic's bottom block is ascending under a descending index.
    index, places = index.sort(stable=True)
    values, vectors = values[places], vectors[places]
    ordered, places = values.sort(descending=True, stable=True)
    return {
        "jacobian": jacobian,
        "eigendistortions": vectors[places].reshape(len(index), *State(image).image_shape),
        "eigenvalues": ordered,
        "eigenindex": index,
    }


def _unpack(packed: Any, shape: tuple[int, ...]) -> Spectrum | None:
    if packed is None:
        return None
    tensors = {name: packed[name].detach() for name in SPECTRUM_TENSORS}
    tensors["eigenvectors"] = tensors["eigenvectors"].reshape(-1, *shape)
    return Spectrum(
        **tensors,
        scale=float(packed["scale"]),
        tol=float(packed["tol"]),
        num_products=int(packed["num_products"]),
        num_verification_products=int(packed["num_verification_products"]),
        null_space_dimension=int(packed["null_space_dimension"]),
        method=str(packed["method"]),
        status=tuple(PairStatus(s) for s in packed["status"]),
        stop_reason=StopReason(packed["stop_reason"]),
        notes=tuple(str(note) for note in packed["notes"]),
        dimension=None if packed.get("dimension") is None else int(packed["dimension"]),
    )


def _search(packed: Any, length: int | None) -> Search | None:
    """Return where the last call stood; vectors of ``length``, of any where that is None."""
    if packed is None:
        return None
    kind, state = tuple(packed["kind"]), dict(packed["state"])
    if kind[0] != "power":
        return Search(kind, state)
    iteration = OrthogonalIteration.from_state(state)
    for end in (iteration.top, iteration.bottom):
        if end is not None and length not in (None, len(end.block)):
            raise ValueError("a solver state of another size")
    return Search(kind, iteration)


def examine_saved_synthesis(path: str | os.PathLike[str], map_location: Any = None) -> None:
    """Print the versions, the object's name and what else a saved file holds.

    Reads files of plenoptic's other classes too. Nothing in the file is executed.

    Parameters
    ----------
    path
        The file.
    map_location
        Device for its tensors, as for :func:`torch.load`.

    Raises
    ------
    ValueError
        When it is no saved synthesis.
    """
    raw = _raw(path, map_location, {})
    metadata = raw.pop(METADATA)
    lines = [f"{key}: {value}" for key, value in metadata.items() if isinstance(value, str)]
    for key, value in raw.items():
        lines.append(f"{key.removeprefix('_')}: {_describe(value)}")
    print("\n".join(lines))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}, {value.dtype}, {value.device}"
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return ", ".join([value[0], *(_describe(v) for v in value[1:] if isinstance(v, Tensor))])
    if isinstance(value, list | tuple | dict) and not isinstance(value, torch.Size):
        return f"{type(value).__name__} of {len(value)}"
    return str(value)
