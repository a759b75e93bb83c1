"""How much memory there is, the refusal of what cannot fit in it, and the way to a device."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.errors import InputError

__all__ = ["available_bytes", "check_fits", "to_device"]


# Asking takes a tenth of a second the first time; no machine that runs this lacks so little.
ALWAYS_FITS = 2**28


def available_bytes(device: torch.device) -> int:
    """Return the memory free on ``device``; what torch keeps cached there counts as taken."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def check_fits(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a dense Jacobian that there is no room for.

    Raises
    ------
    InputError
        When ``rows`` × ``columns`` numbers of ``dtype`` take more than the memory free on
        ``device``.
    """
    needed = rows * columns * dtype.itemsize
    if needed <= ALWAYS_FITS:
        return
    available = available_bytes(device)
    if needed > available:
        raise InputError(
            f"dense Jacobian: expected one that fits in memory, got {rows} × {columns} numbers, "
            f"{needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')} where "
            f"{available / 2**30:.1f} are free on {device}; use method='auto' or 'lanczos', which "
            "store a few vectors, or a smaller picture"
        )


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``tensor`` on ``device``; from the CPU to a GPU without waiting for the copy.

    Only from pinned memory can a GPU copy while the CPU goes on; torch keeps that memory until the
    copy is made.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.to(dtype=dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device=device, dtype=dtype)
