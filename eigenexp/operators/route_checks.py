"""What the products of a route must satisfy before it is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from eigenexp.errors import ModelError
from eigenexp.operators.calling import Linearization, Model, respond, undisturbed
from eigenexp.operators.precision import CoarseStep, find_coarse_step
from eigenexp.operators.route import Route, RouteError

__all__ = ["RouteCheck", "comparison_slack", "draw_pair"]

# Departure from linear, in units of the picture's eps, from which a lower precision is looked for.
# Within one precision 100 and more were not met; from float64 to float32 it is 1e8, from float32
# to bfloat16 or float16 1e4.
COARSE = 500


def comparison_slack(like: Tensor, eps: float | None = None) -> float:
    """Return the relative difference that rounding alone may make between two ways to a product.

    ``eps`` is the model's own rounding where coarser: its errors add up like a random walk.
    """
    own = 2e3 * torch.finfo(like.dtype).eps
    # Accelerators multiply float32 in reduced precision where the user allows it.
    own = own if like.device.type == "cpu" else max(own, 1e-3)
    return own if eps is None else max(own, 32 * eps)


def draw_pair(lin: Linearization, seed: int) -> tuple[Tensor, Tensor]:
    """Return a random vector and a random cotangent, equal on every device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
        for like in (lin.image.detach(), lin.response)
    ]
    return drawn[0], drawn[1]


class RouteCheck:
    """What the products of a route must satisfy, on random vectors of its own generator."""

    def __init__(
        self,
        lin: Linearization,
        model: Model,
        *,
        allow_zero: bool = False,
        eps: float | None = None,
    ) -> None:
        self.allow_zero = allow_zero
        self.vector, self.cotangent = draw_pair(lin, seed=0)
        self.slack = comparison_slack(lin.response, eps)
        self.coarse: CoarseStep | None = None
        self._lin, self._model = lin, model
        # Accelerators round float32 as they are allowed to: JacobianOperator measures it there.
        self._looks = eps is None and (
            lin.image.device.type == "cpu" or lin.image.dtype == torch.float64
        )
        self._found: CoarseStep | None = None
        self._looked = False

    def run(self, route: Route) -> bool:
        """Raise if a product cannot be computed at all; nothing is known of repetition."""
        with route.running():
            route.push(self.vector)
            route.pull(self.cotangent)
        return True

    def check(self, route: Route) -> bool:
        """Raise unless the products repeat up to rounding, are finite, adjoint and not all zero.

        Returns
        -------
        bool
            Whether they repeat bit for bit.
        """
        v, u = self.vector, self.cotangent
        with route.running():
            forward, adjoint = route.push(v), route.pull(u)
            again = route.push(v), route.pull(u)
        products = {"J·v": forward.detach(), "Jᵀ·u": adjoint.detach()}
        for name, product in products.items():
            if not bool(torch.isfinite(product).all()):
                raise RouteError(f"{name} holds NaN or inf; look for sqrt(0), 0/0 or abs(0) in it")
        if not self.allow_zero and not bool(forward.any()) and not bool(adjoint.any()):
            raise ModelError(
                "model: expected a response that changes with the picture, got a zero Jacobian; "
                "look for rounding, thresholds or saturated units at this picture"
            )
        self._look_for_coarse_steps(route, forward.detach(), adjoint.detach())
        for first, second, name in zip(products.values(), again, products, strict=True):
            self._compare(first, second.detach(), f"{name} computed twice")
        for product, reference, argument, name in zip(
            products.values(), route.references, (v, u), products, strict=True
        ):
            if reference is not None:
                expected = reference(argument).detach()
                self._compare(product, expected, f"{name} from tape and autograd")
        left = torch.dot(forward.detach().double(), u.double())
        right = torch.dot(v.double().flatten(), adjoint.detach().double().flatten())
        scale = forward.norm().double() * u.norm().double() + v.norm() * adjoint.norm()
        if not bool((left - right).abs() <= self.slack * scale):
            raise RouteError(
                f"J and Jᵀ are not adjoint: <Jv, u> = {float(left):.6g}, <v, Jᵀu> = "
                f"{float(right):.6g}; a custom backward may be wrong, or float64 needed"
            )
        return all(torch.equal(a, b) for a, b in zip(products.values(), again, strict=True))

    def _look_for_coarse_steps(self, route: Route, forward: Tensor, adjoint: Tensor) -> None:
        """Allow for the model's own rounding where its products show that it is coarse.

        They do by how far they are from linear: J(3v) − 3 Jv is rounding. A product that is wrong
        otherwise is not let pass for that: its defect is not of the size of a precision met in the
        forward pass.
        """
        if not self._looks:
            return
        with route.running():
            tripled = route.push(3 * self.vector).detach(), route.pull(3 * self.cotangent).detach()
        defect = max(
            float((three - 3 * one).norm() / (1e-300 + three.norm() + 3 * one.norm()))
            for three, one in zip(tripled, (forward, adjoint), strict=True)
        )
        if defect <= COARSE * torch.finfo(forward.dtype).eps:
            return
        if not self._looked:
            self._looked = True
            image = self._lin.image.detach()
            with undisturbed(self._model, image.device):
                found = find_coarse_step(lambda: respond(self._model, image), image)
            self._found = found
        if self._found is not None and defect <= 16 * self._found.eps:
            self.coarse = self._found
            self.slack = comparison_slack(self._lin.response, self._found.eps)

    def _compare(self, first: Tensor, second: Tensor, what: str) -> None:
        if not bool((first - second).norm() <= self.slack * first.norm()):
            raise RouteError(f"{what} differs")
