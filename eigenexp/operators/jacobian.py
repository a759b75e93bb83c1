"""The Jacobian of a model at a picture as an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from eigenexp.errors import InputError
from eigenexp.operators.base import Jacobian
from eigenexp.operators.blocks import Blocks
from eigenexp.operators.calling import Model, as_written, copy_image
from eigenexp.operators.compiling import compile_route
from eigenexp.operators.factoring import noise_factor, with_coordinates, with_noise
from eigenexp.operators.memory import check_fits
from eigenexp.operators.noise.base import Noise
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Coordinates, Perturbations, coordinates_at
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.operators.perturbations.latent import Through
from eigenexp.operators.precision import InPrecision, linearity_defect, scaled
from eigenexp.operators.routes import ROUTES, choose_route, comparison_slack

__all__ = ["JacobianOperator"]


class JacobianOperator(Jacobian):
    """J = ∂f/∂x of a model f at a picture x, linearised once; ``operator @ V`` is J·V.

    Parameters
    ----------
    model
        Any callable that takes the picture and returns floating-point tensors: real or complex
        (counted as real and imaginary parts), of any shape, also in tuples, lists, mappings or
        dataclasses, flattened and concatenated in order. It is called a few times while the
        operator is made, and left as it was; its weights must not be changed in place while the
        operator is in use. Attention runs by its mathematical kernel.
    image
        ``(1, C, H, W)``, any other shape with a leading 1, or ``(n,)``; float32 or float64. Copied.
    route
        How products are computed, see :mod:`eigenexp.operators.routes`. ``"auto"`` tries them
        in order; the name found is in :attr:`route`, and passing that name back gives
        the same arithmetic.
    chunk_size
        Columns of a block computed at once. By default as many as keep the intermediate results in
        the cache of a CPU, or busy an accelerator. More columns take more memory. Columns go one
        by one whatever is asked where a model's operations cannot be batched.
    check
        Whether to check, once, that the model is not random, that the products of the route are
        finite, repeatable and adjoint (⟨JV, U⟩ = ⟨V, JᵀU⟩), and whether the model itself rounds
        more coarsely than the picture's dtype. Costs about twelve forward passes.
    allow_zero
        Whether a zero Jacobian is taken; otherwise it is an error, being nearly always a mistake.
    recompute
        Whether to keep no activations but those between blocks, and run the blocks again: less
        memory, about twice the time (:mod:`eigenexp.operators.recomputing`). The same as
        ``route="recompute"``.
    compile
        Whether to run products through ``torch.compile``; checked against those without it, which
        are used, with a warning, where compiling fails or differs.
    model_dtype
        ``torch.bfloat16`` or ``torch.float16``: the network computes in it, its weights are in it
        already; picture, blocks and products stay as they are. See :attr:`product_eps`.
    noise
        How the response varies, see :mod:`eigenexp.noise`: J is then W J, with W the noise's factor
        at this response. ``None``: independent Gaussian noise of standard deviation 1, W = I.
    perturbations
        Which changes are considered, see :mod:`eigenexp.perturbations`: J is then J B, and vectors
        are coordinates z of changes e = B z. ``None``: every change of every pixel, B = I.

    Attributes
    ----------
    shape
        ``(m, n)``: numbers of rows of W J (of responses, for most noises) and of picture values, or
        the dimension of what is considered.
    image_shape
        ``(C, H, W)``, the picture's shape without its leading 1; ``(n,)`` for a 1-D picture.
    image, response
        The picture, and f(x), flat.
    noise, perturbations
        The noise model, and the changes considered.
    coordinates
        B, or None for the identity.
    rank_bound
        Upper bound of the rank of W J.
    dtype, device
        Of the picture, and so of every block and product.
    num_setup_products
        Products spent on choosing and checking the route; not among ``num_jvp`` and ``num_vjp``.

    Raises
    ------
    InputTypeError, ImageError
        When the picture cannot be used.
    ModelError
        When the model fails, is not differentiable, random, constant around the picture, changes
        dtype or device, gives NaN or inf, or a response that the noise cannot be of.

    Notes
    -----
    Works alike under ``no_grad``, ``inference_mode`` and autocast. Which route is taken, and how
    many columns at once, depends on the model, the picture, the dtype and the device alone, so a
    run can be repeated bit for bit on one machine.
    """

    # More for a batch, whose vectors are those of its pictures one after another.
    _pictures_held = 1

    def __init__(
        self,
        model: Model,
        image: Tensor,
        *,
        route: str = "auto",
        chunk_size: int | None = None,
        check: bool = True,
        allow_zero: bool = False,
        recompute: bool = False,
        compile: bool = False,
        model_dtype: torch.dtype | None = None,
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
    ) -> None:
        super().__init__()
        self.perturbations = perturbations_or_default(perturbations)
        self.noise = noise_or_default(noise)
        if recompute:
            if route not in ("auto", "recompute"):
                raise InputError(f"recompute: expected route 'auto' beside it, got {route!r}")
            route = "recompute"
        if route != "auto" and route not in ROUTES:
            raise InputError(f"route: expected 'auto' or one of {list(ROUTES)}, got {route!r}")
        if chunk_size is not None and chunk_size < 1:
            raise InputError(f"chunk_size: expected at least 1 column, got {chunk_size}")
        self.image = self._take(image)
        self.dtype = self.image.dtype
        self.device = self.image.device
        self.image_shape = tuple(self.image.shape[1:]) or (self.image.numel(),)
        self.coordinates: Coordinates | None = None
        maps = self._maps()
        generator, _ = self.perturbations.split()
        model = as_written(model)
        if generator is not None:
            model = Through(model, generator, self.image)
        eps = None
        if model_dtype is not None:
            model, eps = InPrecision(model, model_dtype), torch.finfo(model_dtype).eps
        self._route, spent = choose_route(
            model, self.image, route, check=check, allow_zero=allow_zero, eps=eps
        )
        self.response = self._route.response
        if self._route.coarse is not None:
            eps = self._route.coarse.eps
        if eps is not None:
            self._route = replace(
                self._route,
                push=scaled(self._route.push, self._pictures_held),
                pull=scaled(self._route.pull, self._pictures_held),
            )
        factor = noise_factor(self.noise, self._route, self.image, self._pictures_held)
        self._route = with_noise(self._route, factor, self.noise.floor, self._pictures_held)
        m, n = self.response.numel(), self.image.numel()
        rows = m if factor is None else factor.rows
        self.rank_bound = min(m if factor is None else min(m, factor.rank), n)
        if self.noise.floor > 0:
            rows, self.rank_bound = rows + n, n
        # What J takes: pictures, or coordinates of changes of them.
        self._input = self.image
        if maps:
            self.coordinates = maps[0]
            self._route = with_coordinates(self._route, maps, self.image)
            self._input = self.image.new_zeros(len(maps), *maps[0].shape)
            n = self._input.numel()
            self.rank_bound = min(self.rank_bound, n)
        self.shape = (rows, n)
        # What Jᵀ takes.
        self._output = self.response.new_zeros(rows)
        if compile:
            slack = comparison_slack(self.response, eps)
            self._route = compile_route(self._route, *_vectors(self, 0), slack)
        self._eps = eps
        self._measured_eps: list[float] | None = None
        self._blocks = Blocks(self._route, self._input, self._output, chunk_size)
        self.num_setup_products = spent + self._blocks.num_products

    @property
    def route(self) -> str:
        """Name of the route in use."""
        return self._route.name

    @staticmethod
    def _take(image: Tensor) -> Tensor:
        """Return the operator's own copy of the picture, checked."""
        return copy_image(image)

    def _maps(self) -> list[Coordinates]:
        """Return B at each picture held; none for the identity."""
        pictures = self.image.reshape(self._pictures_held, *self.image_shape)
        found = [coordinates_at(self.perturbations, picture) for picture in pictures]
        maps = [one for one in found if one is not None]
        if len({one.shape for one in maps}) > 1:
            raise InputError(
                f"perturbations: expected as many dimensions at each picture, got "
                f"{[one.size for one in maps]}"
            )
        return maps

    @property
    def width(self) -> int:
        """Largest number of values in an intermediate result of a product; 0 where not known."""
        return self._route.width

    @property
    def repeatable(self) -> bool:
        """Whether the same product computed twice was the same bit for bit, when checked."""
        return self._route.repeatable

    @property
    def work(self) -> int:
        """Multiplications of one product of F, counted: J v and Jᵀ u as three forward passes."""
        return 3 * self._route.work // self._pictures_held

    @property
    def product_eps(self) -> float:
        """Relative rounding of a product, as ``torch.finfo(dtype).eps`` is of one operation.

        The network's own where it computes in a lower precision (asked to, or by a step of its
        own), or may (on an accelerator); there it is measured, once, by how far J and Jᵀ are from
        linear. No residual below a few times
        ``product_eps`` · λmax carries information.
        """
        return max(self._product_eps())

    def _product_eps(self) -> list[float]:
        """Return ``product_eps`` at each picture held."""
        own, count = torch.finfo(self.dtype).eps, self._pictures_held
        if self._eps is None and self.device.type == "cpu":
            return [own] * count
        if self._measured_eps is None:
            first, second = _vectors(self, 1), _vectors(self, 2)
            with self._route.running():
                pushed = linearity_defect(self._route.push, first[0], second[0], count)
                pulled = linearity_defect(self._route.pull, first[1], second[1], count)
            least = max(own, self._eps or 0.0)
            self._measured_eps = [max(least, defect) for defect in (pushed + pulled).tolist()]
        return self._measured_eps

    @property
    def chunk_size(self) -> int:
        """Columns of a block computed at once."""
        return self._blocks.chunk_size

    def to_dense(self) -> Tensor:
        """Return J, ``(m, n)``: by columns J·eᵢ or by rows Jᵀ·eᵢ, whichever is cheaper.

        Memory beyond J itself is that of one chunk. The products are counted.

        Raises
        ------
        InputError
            When J takes more than the memory free on the device.
        """
        m, n = self.shape
        check_fits(m, n, self.dtype, self.device)
        push_cost, pull_cost = self._route.costs
        with torch.inference_mode(False):
            jacobian = torch.empty(m, n, dtype=self.dtype, device=self.device)
        done = 0
        if n * push_cost <= m * pull_cost:
            for (columns,) in self._blocks.iterate(self._push, n, _unit_vectors(self._input)):
                jacobian[:, done : done + len(columns)] = columns.T
                done += len(columns)
            self._jvps.add(n)
        else:
            for (rows,) in self._blocks.iterate(self._pull, m, _unit_vectors(self._output)):
                jacobian[done : done + len(rows)] = rows.reshape(len(rows), n)
                done += len(rows)
            self._vjps.add(m)
        return jacobian

    def _push(self, vector: Tensor) -> tuple[Tensor]:
        return (self._route.push(vector),)

    def _pull(self, cotangent: Tensor) -> tuple[Tensor]:
        return (self._route.pull(cotangent),)

    def _push_pull(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        response = self._route.push(vector)
        return self._route.pull(response), response

    def _matmat(self, block: Tensor) -> Tensor:
        (responses,) = self._blocks.apply(self._push, self._pictures(block))
        return responses

    def _rmatmat(self, block: Tensor) -> Tensor:
        (pictures,) = self._blocks.apply(self._pull, block.T.contiguous())
        return pictures

    def _products(self, block: Tensor) -> tuple[Tensor, Tensor]:
        if block.shape[1] == 1 and not block.is_inference():
            # The usual case of a solver on a CPU, where each microsecond counts on small pictures.
            with self._route.running():
                vector = block.contiguous().reshape(self._input.shape)
                response = self._route.push(vector).detach()
                product = self._route.pull(response).detach()
            return product.reshape(-1, 1), response.reshape(-1, 1)
        products, responses = self._blocks.apply(self._push_pull, self._pictures(block))
        return products, responses

    def _pictures(self, block: Tensor) -> Tensor:
        # Contiguous, so that the caller's strides do not reach the arithmetic.
        return block.T.contiguous().reshape(block.shape[1], *self._input.shape)


def _vectors(operator: JacobianOperator, seed: int) -> tuple[Tensor, Tensor]:
    """Return a random vector and a random cotangent, equal on every device."""
    generator = torch.Generator().manual_seed(seed)
    image, response = operator._input, operator._output
    drawn = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        for x in (image, response)
    ]
    return drawn[0], drawn[1]


def _unit_vectors(like: Tensor) -> Callable[[int, int], Tensor]:
    """Return a function that makes the unit vectors from ``start`` to ``stop``, shaped so."""

    def make(start: int, stop: int) -> Tensor:
        units = torch.zeros(stop - start, like.numel(), dtype=like.dtype, device=like.device)
        units[:, start:stop].fill_diagonal_(1)
        return units.reshape(-1, *like.shape)

    return make
