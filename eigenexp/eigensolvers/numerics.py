"""Pure functions every method shares: rounding, units, checks of products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eigenexp.errors import ProductError

__all__ = [
    "check_definite",
    "check_numbers",
    "check_symmetric",
    "rounding_floor",
    "unit_of",
]


def rounding_floor(dtype: torch.dtype, n: int, product_eps: float = 0.0) -> float:
    """Return the residual, over λmax, below which a product carries no information.

    Parameters
    ----------
    dtype, n
        Of the vectors.
    product_eps
        Relative rounding of a product where it is worse than ``dtype``'s: a bf16 network.
    """
    own = float(torch.finfo(dtype).eps)
    floor = 4.0 * own * math.sqrt(math.sqrt(n))
    return max(floor, 2.0 * product_eps) if product_eps > own else floor


def check_numbers(products: Tensor, block: Tensor, whose: str = "") -> None:
    """Refuse told products of another dtype or device than their block, or with NaN or inf.

    Parameters
    ----------
    products, block
        What was told, and what was asked for.
    whose
        Words behind what was got, where several operators are told: ``" of operator 1"``.

    Raises
    ------
    ProductError
        Saying what was expected.
    """
    if products.dtype != block.dtype or products.device != block.device:
        raise ProductError(
            f"tell: expected products in {block.dtype} on {block.device}, "
            f"got {products.dtype} on {products.device}{whose}"
        )
    # One cheap pass: a sum is finite only where all is; where it overflowed, look closely.
    if not math.isfinite(float(products.sum())) and not bool(torch.isfinite(products).all()):
        raise ProductError(
            f"tell: expected finite products, got NaN or inf{whose}; the last good state is kept. "
            "Look for 0/0 or sqrt(0) in the model at this picture, or solve in float64"
        )


def unit_of(largest: float, dtype: torch.dtype, *, squared: bool) -> float:
    """Return the power of 4 to measure F in, so that products can be squared in their dtype.

    Division by it is exact. 1 where products are near enough to 1 as they are.

    Parameters
    ----------
    largest
        The largest entry of a product, not 0.
    dtype
        Of the product.
    squared
        Whether it is one of F, and not of J, whose square F is.

    Raises
    ------
    ProductError
        When products are so small that their smaller entries are lost.
    """
    info = torch.finfo(dtype)
    if largest * info.eps < info.tiny:
        raise ProductError(
            f"tell: expected products that {dtype} can hold, got {largest:.1e} at most, of which "
            "smaller entries are rounded to 0; scale the model's response up, or solve in float64"
        )
    exponent = math.frexp(largest)[1] * (1 if squared else 2)
    # Squares of residuals 1e-7 of the scale must be at home, too.
    near = 30 if dtype == torch.float32 else 300
    return 1.0 if abs(exponent) <= near else math.ldexp(1.0, 2 * (exponent // 2))


def check_symmetric(forward: Tensor, backward: Tensor, scale: float, n: int, eps: float) -> None:
    """Refuse products whose VᵀF T and (F V)ᵀT differ by more than rounding, relative ``eps``.

    Raises
    ------
    ProductError
        With the relative asymmetry.
    """
    wrong = float((forward - backward).abs().max()) if forward.numel() else 0.0
    slack = 1e3 * math.sqrt(n) * eps
    if wrong > slack * scale + 1e-300:
        raise ProductError(
            f"tell: expected the product of a symmetric operator, got an asymmetry of "
            f"{wrong / scale:.1e} relative; check Jᵀ against J"
        )


def check_definite(smallest: float, largest: float, floor: float) -> None:
    """Refuse products with a Ritz value below zero by more than rounding, relative ``floor``.

    F = JᵀJ has no negative eigenvalue.

    Raises
    ------
    ProductError
        With the Ritz value.
    """
    slack = 25 * floor
    if smallest < -slack * max(largest, -smallest):
        raise ProductError(
            f"tell: expected products of F = JᵀJ, which has no negative eigenvalue, got a Ritz "
            f"value of {smallest:.3g} beside {largest:.3g}; check that Jᵀ belongs to J, or pass "
            "F and not -F"
        )
