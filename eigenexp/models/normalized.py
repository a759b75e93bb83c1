"""A model behind the scaling of the pictures that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eigenexp.errors import InputError, ModelError

__all__ = ["SCALINGS", "Normalized"]

SCALINGS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by name, of RGB in [0, 1]: ImageNet's, (x − ½)/½, CLIP's."""


class Normalized(nn.Module):
    """f((x − mean)/std): pictures stay in [0, 1], as they are shown, and distortions with them.

    Parameters
    ----------
    model
        Takes what is scaled.
    mean, std
        A number, one a channel, or a name of :data:`SCALINGS`. Where one is named, the other is of
        the same name unless given; otherwise the mean is 0 and the deviation 1 unless given.

    Raises
    ------
    InputError
        When they are neither, or a deviation is not positive.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> Normalized(nn.Identity(), 0.5, 0.25)(torch.ones(1, 1, 2, 2)).unique()
    tensor([2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Any = None, std: Any = None) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        named = next((each for each in (mean, std) if isinstance(each, str)), None)
        usual = ((0.0,), (1.0,)) if named is None else _named(named)
        means = _numbers("mean", mean, usual[0], 0)
        deviations = _numbers("std", std, usual[1], 1)
        if min(deviations) <= 0:
            raise InputError(f"std: expected positive numbers, got {list(deviations)}")
        for name, values in (("mean", means), ("std", deviations)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        """Return the model's answer to scaled pictures ``(B, C, H, W)``."""
        channels = max(len(self.mean), len(self.std))
        if channels > 1 and (x.ndim < 3 or x.shape[-3] != channels):
            hint = "; load them with channels='color'" if channels == 3 else ""
            raise ModelError(
                f"{type(self.model).__name__}: expected pictures (B, {channels}, H, W), as many "
                f"channels as mean and std have, got {tuple(x.shape)}{hint}"
            )
        return self.model((x - self.mean) / self.std)


def _named(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name not in SCALINGS:
        raise InputError(
            f"mean, std: expected numbers or one of {', '.join(SCALINGS)}, got {name!r}"
        )
    return SCALINGS[name]


def _numbers(name: str, value: Any, usual: tuple[float, ...], place: int) -> tuple[float, ...]:
    if value is None:
        return usual
    if isinstance(value, str):
        return _named(value)[place]
    entries = list(value) if isinstance(value, Sequence) else [value]
    if not entries or not all(
        isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in entries
    ):
        raise InputError(
            f"{name}: expected a number, one a channel, or one of {', '.join(SCALINGS)}, got "
            f"{value!r}"
        )
    return tuple(float(entry) for entry in entries)
