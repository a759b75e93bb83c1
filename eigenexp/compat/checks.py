"""Whether a saved file belongs to an object, and taking its content over."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigenexp.compat.files import PLENOPTIC_NAMES, Content, object_name
from eigenexp.errors import CheckpointError, summary
from eigenexp.operators.calling import uncompiled
from eigenexp.operators.responses import response_values

__all__ = ["LoadWarning", "Owner", "check"]


class LoadWarning(UserWarning):
    """A check of ``load`` that failed and was tolerated (``raise_on_checks=False``)."""


@dataclass(frozen=True)
class Owner:
    """The object a file is loaded into: class, picture, model, added attributes, noise, changes."""

    name: str | None
    image: Tensor
    model: Callable[[Tensor], Any]
    extras: Mapping[str, Any]
    measured: Mapping[str, str]


def check(owner: Owner, content: Content, strict: bool, atol: float, rtol: float) -> None:
    """Raise, or (not ``strict``) warn, where ``owner`` is not made like the saved object."""
    hint = f"; eigenexp.examine_saved_synthesis({content.path!r}) shows what it holds"
    if strict:
        hint += ", raise_on_checks=False loads it all the same"

    def fail(message: str) -> None:
        if strict:
            raise CheckpointError(message + hint)
        warnings.warn(message + hint, LoadWarning, stacklevel=4)

    own = owner.name
    if content.name != own and not (
        own == "eigenexp.Eigendistortion" and content.name in PLENOPTIC_NAMES
    ):
        fail(
            f"Saved object was a {content.name}, but initialized object is another: expected a "
            f"saved {own}"
        )
    present, saved = owner.extras, content.extras
    for names, holder, other in (
        (present.keys() - saved.keys(), "Initialized", "saved"),
        (saved.keys() - present.keys(), "Saved", "initialized"),
    ):
        if names:
            fail(
                f"{holder} object has {len(names)} attribute(s) not present in the {other} one: "
                f"expected the same in both, got also {', '.join(sorted(names))}"
            )
    for choice, present_one in owner.measured.items():
        if content.measured[choice] != present_one:
            fail(
                f"Saved and initialized object have different {choice}: expected "
                f"{content.measured[choice]}, as saved, got {present_one}"
            )
    differing = _difference("attribute image", content.state.image, owner.image, atol, rtol)
    if differing:
        fail(differing)
    try:
        with torch.no_grad(), uncompiled():
            output = owner.model(content.state.image)
    except Exception as error:
        raise CheckpointError(
            f"load: expected a model that responds to the saved picture, got {summary(error)}{hint}"
        ) from error
    if not isinstance(output, Tensor):
        output = response_values(output)
    differing = _difference("model output", content.model_output, output, atol, rtol)
    if differing:
        fail(differing)
    name = object_name(owner.model)
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
