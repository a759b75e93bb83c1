"""The ways to compute J·v and Jᵀ·u, one vector at a time, and the choice among them.

===================  ============================================  ==============================
route                J·v                                           Jᵀ·u
===================  ============================================  ==============================
``traced``           tape of the double backward pass              tape of the backward pass
``traced-forward``   tape of one forward pass on dual numbers      tape of the backward pass
``double-backward``  derivative of u ↦ Jᵀu, graph kept             backward pass, graph kept
``forward-mode``     a forward pass on dual numbers a product      backward pass, graph kept
``rows``             product with J, built from m backward passes  the same
``recompute``        a forward pass on dual numbers a product      backward pass, blocks run again
===================  ============================================  ==============================

The order is that of preference; ``recompute`` is taken only when asked for. A tape
(:mod:`eigenexp.operators.tape`) costs about one forward pass a product. The double backward pass
comes before dual numbers because it never runs the model again, works for nearly every model and,
once taped, costs the same. No route hands a model to a function transform: those fail badly, or
crash, on models that assign ``.data`` in their forward.

A route is taken when its products are finite, repeat (bit for bit, or with a warning up to
rounding), are adjoint to each other, and, for a tape, agree with autograd on vectors other than
those recorded. The choice depends on the model, the picture, the dtype and the device alone: never
on the clock.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor

from eigenexp.errors import ModelError, summary
from eigenexp.operators.calling import (
    Linearization,
    Model,
    gradient,
    linearize,
    respond,
    undisturbed,
)
from eigenexp.operators.precision import CoarseStep
from eigenexp.operators.recomputing import recomputing
from eigenexp.operators.route import Product, Route, RouteError
from eigenexp.operators.route_checks import RouteCheck, comparison_slack, draw_pair
from eigenexp.operators.tape import record

__all__ = ["AUTOMATIC", "ROUTES", "Route", "choose_route", "comparison_slack"]

# The dense Jacobian of the last resort takes at most this many bytes.
ROWS_LIMIT = 2**30


def choose_route(
    model: Model,
    image: Tensor,
    name: str = "auto",
    *,
    check: bool = True,
    allow_zero: bool = False,
    eps: float | None = None,
) -> tuple[Route, int]:
    """Return the first route that works for ``model`` at ``image``, and the products it took.

    ``eps`` is the rounding of the model's own arithmetic, where coarser than the picture's.

    Raises
    ------
    ModelError
        When the model has no usable derivative by any route, or by the one named; when its
        Jacobian is zero, unless ``allow_zero``.
    """
    failures: dict[str, str] = {}
    spent = 0
    keeping = recomputing(model) if name == "recompute" else contextlib.nullcontext()
    with undisturbed(model, image.device):
        with keeping:
            lin = linearize(model, image, check=check)
        checks = RouteCheck(lin, model, allow_zero=allow_zero, eps=eps)
        for candidate in [name] if name != "auto" else AUTOMATIC:
            try:
                route = ROUTES[candidate](model, lin)
                spent += route.num_products
                if check:
                    repeatable = checks.check(route)
                    spent += 6 + sum(reference is not None for reference in route.references)
                else:
                    repeatable = checks.run(route)
                    spent += 2
            except RouteError as error:
                failures[candidate] = str(error)
            except (torch.OutOfMemoryError, ModelError):
                raise
            except Exception as error:
                failures[candidate] = summary(error)
            else:
                if not repeatable:
                    warnings.warn(_UNREPEATABLE, stacklevel=4)
                if checks.coarse is not None:
                    warnings.warn(_coarse_message(checks.coarse, image.dtype), stacklevel=4)
                route = replace(route, repeatable=repeatable, coarse=checks.coarse, work=lin.work)
                # The references hold the autograd graphs, which a tape no longer needs.
                return replace(route, references=(None, None)), spent
    reasons = dict.fromkeys(failures.values())
    raise ModelError(
        "model: expected a response differentiable in the picture, got "
        + "; ".join(f"{', '.join(k for k in failures if failures[k] == r)}: {r}" for r in reasons)
    )


_UNREPEATABLE = (
    "products repeat only up to rounding: an operation of the model adds up in varying order, so a "
    "resumed run will not be bit-identical; torch.use_deterministic_algorithms(True) may help, on "
    "a CPU one thread does"
)


def _coarse_message(coarse: CoarseStep, dtype: torch.dtype) -> str:
    return (
        f"model: expected arithmetic in the picture's {dtype}, got {coarse}; products are rounded "
        f"to {coarse.eps:.0e}, below which no residual says anything: keep one precision through "
        "the model where that is not enough"
    )


# -- the routes ------------------------------------------------------------------------------------


def _plain(device: torch.device) -> AbstractContextManager[object]:
    """Arithmetic without gradients, whatever mode the caller is in."""
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return _sheltered(device, gradients=False)
    return torch.no_grad()


def _recording(device: torch.device) -> AbstractContextManager[object]:
    """Arithmetic that gradients are recorded of, whatever mode the caller is in."""
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return _sheltered(device, gradients=True)
    return torch.enable_grad()


@contextlib.contextmanager
def _sheltered(device: torch.device, *, gradients: bool) -> Iterator[None]:
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def _double_backward(lin: Linearization) -> Product:
    # Jᵀu is linear in u, so the derivative of ⟨Jᵀu, v⟩ in u is J·v for any u; zero will do.
    dummy = torch.zeros_like(lin.output, requires_grad=True)
    adjoint = lin.pull(dummy, create_graph=True)

    def push(vector: Tensor) -> Tensor:
        product = gradient(adjoint, dummy, vector)
        if product is None:
            raise RouteError("the backward pass is not differentiable")
        return product

    return push


def _dual_numbers(model: Model, lin: Linearization) -> Product:
    image = lin.image.detach()

    def push(vector: Tensor) -> Tensor:
        with fwad.dual_level():
            dual = fwad.make_dual(image, vector)  # type: ignore[no-untyped-call]
            try:
                response = respond(model, dual)
            except ModelError as error:
                raise RouteError(summary(error.__cause__ or error)) from error
            _, tangent = fwad.unpack_dual(response)  # type: ignore[no-untyped-call]
        return torch.zeros_like(lin.response) if tangent is None else tangent

    return push


def _taped(name: str, lin: Linearization, push: Product) -> Route:
    # Any vector will do, except those of the check that follows.
    vector, cotangent = draw_pair(lin, seed=1)
    forward = record(push, vector)
    adjoint = record(lin.pull, cotangent)
    device = lin.response.device
    return Route(
        name=name,
        push=forward,
        pull=adjoint,
        response=lin.response,
        running=lambda: _plain(device),
        taped=True,
        width=max(forward.width, adjoint.width),
        costs=(float(forward.cost), float(adjoint.cost)),
        num_products=2,
        references=(push, lin.pull),
    )


def _traced(model: Model, lin: Linearization) -> Route:
    return _taped("traced", lin, _double_backward(lin))


def _traced_forward(model: Model, lin: Linearization) -> Route:
    return _taped("traced-forward", lin, _dual_numbers(model, lin))


def _untaped(name: str, model: Model, lin: Linearization, push: Product) -> Route:
    device = lin.response.device
    return Route(
        name=name,
        push=push,
        pull=lin.pull,
        response=lin.response,
        running=lambda: undisturbed(model, device),
    )


def _kept_graph(model: Model, lin: Linearization) -> Route:
    route = _untaped("double-backward", model, lin, _double_backward(lin))
    device = lin.response.device
    # The model itself never runs again: there is no state of its to put back after each product,
    # which would take as long as a product of a small model.
    return replace(route, running=lambda: _recording(device))


def _forward_mode(model: Model, lin: Linearization) -> Route:
    return _untaped("forward-mode", model, lin, _dual_numbers(model, lin))


def _recomputed(model: Model, lin: Linearization) -> Route:
    dual = _dual_numbers(model, lin)

    def push(vector: Tensor) -> Tensor:
        # Dual numbers need no graph, also of weights that ask for gradients.
        with torch.no_grad():
            return dual(vector)

    return _untaped("recompute", model, lin, push)


def _rows(model: Model, lin: Linearization) -> Route:
    m, shape = lin.response.numel(), lin.image.shape
    size = m * lin.image.numel() * lin.response.element_size()
    if size > ROWS_LIMIT:
        raise RouteError(f"a dense Jacobian would take {size / 2**30:.1f} GiB")
    jacobian = torch.empty(m, lin.image.numel(), dtype=lin.response.dtype, device=lin.image.device)
    for i in range(m):
        row = torch.zeros_like(lin.response)
        row[i] = 1
        jacobian[i] = lin.pull(row).reshape(-1)
    device = lin.response.device
    return Route(
        name="rows",
        push=lambda vector: jacobian @ vector.reshape(-1),
        pull=lambda cotangent: (cotangent @ jacobian).reshape(shape),
        response=lin.response,
        running=lambda: _plain(device),
        width=max(jacobian.shape),
        num_products=m,
        references=(None, lin.pull),
    )


ROUTES: dict[str, Callable[[Model, Linearization], Route]] = {
    "traced": _traced,
    "traced-forward": _traced_forward,
    "double-backward": _kept_graph,
    "forward-mode": _forward_mode,
    "rows": _rows,
    "recompute": _recomputed,
}
AUTOMATIC = tuple(name for name in ROUTES if name != "recompute")
