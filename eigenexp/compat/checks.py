"""Whether a saved file belongs to an object, and taking its content over."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eigenexp.compat.files import (
    PLENOPTIC_NAMES,
    Content,
    added_attributes,
    flat_response,
    object_name,
)
from eigenexp.compat.orthogonal_iteration import OrthogonalIteration
from eigenexp.errors import CheckpointError

if TYPE_CHECKING:
    from eigenexp.compat.synthesis import Synthesis

__all__ = ["LoadWarning", "adopt", "check"]


class LoadWarning(UserWarning):
    """A check of ``load`` that failed and was tolerated (``raise_on_checks=False``)."""


def check(eig: Synthesis, content: Content, strict: bool, atol: float, rtol: float) -> None:
    """Raise, or (not ``strict``) warn, where ``eig`` is not made like the saved object."""
    hint = f"; eigenexp.examine_saved_synthesis({content.path!r}) shows what it holds"
    if strict:
        hint += ", raise_on_checks=False loads it all the same"

    def fail(message: str) -> None:
        if strict:
            raise CheckpointError(message + hint)
        warnings.warn(message + hint, LoadWarning, stacklevel=4)

    own = object_name(eig)
    if content.name != own and not (
        own == "eigenexp.Eigendistortion" and content.name in PLENOPTIC_NAMES
    ):
        fail(
            f"Saved object was a {content.name}, but initialized object is another: expected a "
            f"saved {own}"
        )
    present, saved = added_attributes(eig), content.extras
    for names, holder, other in (
        (present.keys() - saved.keys(), "Initialized", "saved"),
        (saved.keys() - present.keys(), "Saved", "initialized"),
    ):
        if names:
            fail(
                f"{holder} object has {len(names)} attribute(s) not present in the {other} one: "
                f"expected the same in both, got also {', '.join(sorted(names))}"
            )
    differing = _difference("attribute image", content.image, eig.image, atol, rtol)
    if differing:
        fail(differing)
    try:
        with torch.no_grad():
            output = eig.model(content.image)
    except Exception as error:
        raise CheckpointError(
            "load: expected a model that responds to the saved picture, got "
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{hint}"
        ) from error
    if not isinstance(output, Tensor):
        output = flat_response(output)
    differing = _difference("model output", content.model_output, output, atol, rtol)
    if differing:
        fail(differing)
    name = object_name(eig.model)
    if (content.model_name or "").split(".")[-1] != (name or "").split(".")[-1]:
        fail(
            f"Saved and initialized model have different names: expected {content.model_name}, as "
            f"saved, got {name}"
        )


def _difference(what: str, saved: Tensor, own: Tensor, atol: float, rtol: float) -> str | None:
    """Say how two tensors differ; a device or dtype that differs raises."""
    differ = f"Saved and initialized {what} have different"
    if saved.device != own.device:
        raise CheckpointError(
            f"{differ} device: expected {saved.device}, as saved, got {own.device}; pass "
            f"map_location='{own.device}'"
        )
    if saved.shape != own.shape and not saved.numel() == own.numel() == 1:
        return f"{differ} shape: expected {tuple(saved.shape)}, as saved, got {tuple(own.shape)}"
    if saved.dtype != own.dtype:
        raise CheckpointError(
            f"{differ} dtype: expected {saved.dtype}, as saved, got {own.dtype}; call "
            f".to({saved.dtype}) first"
        )
    if not torch.allclose(saved.reshape(own.shape), own, rtol=rtol, atol=atol):
        largest = float((saved.reshape(own.shape) - own).abs().max())
        return f"{differ} values: expected those saved, got some that differ by {largest:.3g}"
    return None


def adopt(eig: Synthesis, content: Content) -> None:
    """Put a checked file's content into ``eig``; nothing here can fail half way."""
    new: dict[str, Any] = {
        "_image": content.image,
        **content.results,
        "_spectrum": content.spectrum,
        "_operator": None,
        "_graph": None,
        "_solver": None,
        "_solver_kind": None,
        "_solver_state": None,
        "_loaded": True,
        # What the object lacks is ignored: a file must not put names of its choice in it.
        **{key: value for key, value in content.extras.items() if key in vars(eig)},
    }
    if content.solver is not None:
        new["_solver_kind"] = content.solver.kind
        if content.solver.kind[0] == "power":
            new["_solver"] = OrthogonalIteration.from_state(content.solver.state)
        else:
            new["_solver_state"] = content.solver.state
    vars(eig).update(new)
