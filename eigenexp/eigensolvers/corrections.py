"""What every surrogate A of F does with its inverse: bottom vectors, and Olsen's correction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["dominant", "olsen", "refine"]

ENOUGH = 1e-3
"""Residual of a Ritz value of A⁻¹, over it, at which the vector is good enough to start from."""


def dominant(operate: Callable[[Tensor], Tensor], start: Tensor, count: int, steps: int) -> Tensor:
    """Return Ritz vectors of the largest eigenvalues of an operator, outermost first.

    Lanczos with full reorthogonalisation.

    Parameters
    ----------
    operate
        Symmetric, ``(n, b)`` to ``(n, b)``.
    start
        ``(n, 1)``, random.
    count
        Vectors wanted.
    steps
        Size of the Krylov space at the most.

    Returns
    -------
    Tensor
        ``(n, count)``.
    """
    krylov = (start / start.norm()).mT.contiguous()
    images = operate(krylov.mT)
    for _ in range(min(max(steps, count), start.shape[0]) - 1):
        w = images[:, -1]
        for _ in range(2):
            w = w - krylov.mT @ (krylov @ w)
        norm = float(w.norm())
        if norm <= 10 * torch.finfo(w.dtype).eps * float(images[:, -1].norm()):
            break
        if len(krylov) >= count + 2:
            values, vectors = _ritz(krylov, images)
            if bool((norm * vectors[-1, :count].abs() <= ENOUGH * values[:count]).all()):
                break
        krylov = torch.cat([krylov, (w / norm)[None]])
        images = torch.cat([images, operate(krylov[-1, :, None])], dim=1)
    found: Tensor = krylov.mT @ _ritz(krylov, images)[1][:, :count].to(krylov)
    return found


def _ritz(krylov: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    projected = (krylov @ images).double().cpu()
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    return values.flip(0), vectors.flip(1)


def olsen(solve: Callable[[Tensor], Tensor], end: str, residual: Tensor, locked: Tensor) -> Tensor:
    """Return t with P A t = r, t ⊥ U (Olsen, Jørgensen & Simons 1990); r itself at the top.

    Parameters
    ----------
    solve
        A⁻¹.
    end
        ``"top"`` or ``"bottom"``.
    residual
        r, ``(n, 1)``.
    locked
        U, ``(n, k)``: the Ritz vectors that t must leave alone.
    """
    if end == "top":
        return residual
    solved = solve(torch.cat([residual, locked], dim=1))
    t, inside = solved[:, :1], solved[:, 1:]
    gram = (locked.mT @ inside).double()
    # UᵀA⁻¹U is positive definite. Least squares would end in other last bits now and then.
    share = torch.linalg.solve(gram, (locked.mT @ t).double())
    corrected: Tensor = t - inside @ share.to(t)
    return corrected


def refine(
    apply: Callable[[Tensor], Tensor],
    solve: Callable[[Tensor], Tensor],
    end: str,
    residual: Tensor,
    value: float,
    locked: Tensor,
    steps: int,
) -> Tensor:
    """Solve the correction equation (A − θ) t = r off ``locked``, roughly.

    t minimises the residual of P (A − θ) P t = r, P = I − U Uᵀ, over a small Krylov space, of
    P A P in the 2-norm at the top, of P A⁻¹ P in the norm of A⁻¹ at the bottom (Sleijpen & van
    der Vorst 1996, with A in place of F).

    Parameters
    ----------
    apply, solve
        A V and A⁻¹ V; the latter may be rough.
    end
        ``"top"`` or ``"bottom"``.
    residual
        ``(n, 1)``.
    value
        θ.
    locked
        U, ``(n, k)``, orthonormal: the Ritz vectors that t must leave alone.
    steps
        Size of that Krylov space, beyond the first vector.
    """

    def off(vectors: Tensor) -> Tensor:
        return vectors - locked @ (locked.mT @ vectors)

    bottom = end == "bottom"
    operate = solve if bottom else apply
    krylov = [off(solve(residual) if bottom else residual)]
    for _ in range(steps):
        krylov.append(off(operate(krylov[-1] / krylov[-1].norm())))
    t = torch.linalg.qr(torch.cat(krylov, dim=1)).Q
    image = off(apply(t) - value * t)
    weighted = solve(image) if bottom else image
    gram = (image.mT @ weighted).double()
    right = (weighted.mT @ residual).double()
    if not bool(torch.isfinite(gram).all()):
        return krylov[0]
    corrected: Tensor = t @ (torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ right).to(t)
    return corrected
