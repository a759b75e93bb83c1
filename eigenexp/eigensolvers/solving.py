"""The loop: a solver, an operator, and a product a turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from eigenexp.eigensolvers.base import Eigensolver, Request, Which
from eigenexp.eigensolvers.methods import METHODS
from eigenexp.errors import InputError
from eigenexp.spectrum import Spectrum

if TYPE_CHECKING:
    from eigenexp.operators import DenseOperator, FisherOperator

    Operator = FisherOperator | DenseOperator

__all__ = ["make_solver", "multiply", "solve"]


def make_solver(
    operator: Operator,
    method: str = "auto",
    *,
    k: int = 1,
    which: Which = "both",
    tol: float = 1e-4,
    seed: int = 0,
    max_products: int | None = None,
    **options: Any,
) -> Eigensolver:
    """Return the solver of a method, fitted to the operator.

    Parameters
    ----------
    operator
        Gives n, dtype, device, the bound of the rank, the picture's shape and vectors worth
        trying first.
    method
        A name in :data:`~eigenexp.eigensolvers.METHODS`.
    k, which, tol, seed, max_products
        See :class:`~eigenexp.eigensolvers.base.Settings`.
    options
        Of the method, for instance ``basis_size=40``.

    Raises
    ------
    InputError
        When the method or an option is not known, or a setting cannot be used.
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    kind = METHODS[method]
    known = kind.options()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"{unknown[0]}: expected an option of method {method!r} "
            f"({', '.join(known) or 'it has none'}), got {unknown[0]!r}"
        )
    return kind(
        operator.shape[0],
        k=k,
        which=which,
        tol=tol,
        seed=seed,
        max_products=max_products,
        rank_bound=operator.rank_bound,
        image_shape=operator.image_shape,
        dtype=operator.dtype,
        device=operator.device,
        start=operator.start,
        **kind.fit(operator),
        **options,
    )


def multiply(operator: Operator, request: Request, block: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the product a solver requested for ``block``, and J·V where it comes with it.

    Returns
    -------
    products, responses
        ``"fisher"``: F·V ``(n, b)`` and J·V ``(m, b)`` or None; ``"jacobian"``: J·V ``(m, b)``,
        None; ``"adjoint"``: Jᵀ·U ``(n, b)``, None.
    """
    if request == "jacobian":
        return operator.jacobian.matmat(block), None
    if request == "adjoint":
        return operator.jacobian.rmatmat(block), None
    return operator.apply(block)


def solve(
    operator: Operator,
    method: str = "auto",
    *,
    k: int = 1,
    which: Which = "both",
    tol: float = 1e-4,
    seed: int = 0,
    max_products: int | None = None,
    callback: Callable[[Eigensolver], object] | None = None,
    **options: Any,
) -> Spectrum:
    """Solve for the wanted eigenpairs of F, with their certificates.

    Parameters
    ----------
    operator
        A :class:`~eigenexp.operators.FisherOperator` or ``DenseOperator``.
    method, k, which, tol, seed, max_products, options
        See :func:`make_solver`.
    callback
        Called with the solver after each product.

    Returns
    -------
    Spectrum
        With eigenvectors of shape ``(k, *operator.image_shape)``.

    Examples
    --------
    >>> spectrum = solve(FisherOperator(model, image), k=5, which="both", tol=1e-6)
    """
    solver = make_solver(
        operator,
        method,
        k=k,
        which=which,
        tol=tol,
        seed=seed,
        max_products=max_products,
        **options,
    )
    while not solver.done:
        products, responses = multiply(operator, solver.request, solver.ask())
        solver.tell(products, responses)
        if callback is not None:
            callback(solver)
    return solver.result().reshape(operator.image_shape)
