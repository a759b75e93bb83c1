"""F·V at several pictures in one pass of the model.

A model in ``eval`` mode treats the pictures of a batch apart, so the Jacobian of the whole batch is
block-diagonal: one column a picture, stacked, is one product of the batch. That saves the cost of
calling, which on small pictures is most of it. Whether a model is such a one is not assumed but
checked: with its responses to each picture alone, and with products in which only some of the
pictures have a vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.errors import ImageError, InputError, ModelError
from eigenexp.operators.base import count_columns
from eigenexp.operators.calling import Model, as_written, copy_image, respond, undisturbed
from eigenexp.operators.fisher import FisherOperator
from eigenexp.operators.jacobian import JacobianOperator
from eigenexp.operators.noise.base import Noise
from eigenexp.operators.noise.gaussian import noise_or_default
from eigenexp.operators.perturbations import Perturbations, coordinates_at
from eigenexp.operators.perturbations.base import perturbations_or_default
from eigenexp.operators.precision import InPrecision
from eigenexp.operators.protocol import Problem, Request
from eigenexp.operators.responses import flatten_rows
from eigenexp.operators.routes import comparison_slack
from eigenexp.operators.starting import start_vectors

__all__ = ["BatchedFisherOperator", "pictures_at_once"]

# Bytes of the largest intermediate result up to which more pictures at once cost less each.
# Measured at 32² and 64² on LN, LG, LGG, OnOff and a convolutional net, one thread: up to half the
# time a picture within this, at most a seventh less at three times as much, where pictures that
# wait for each other and processes that share out batches cost more than is gained.
CPU_BYTES = 2**17
CPU_PICTURES = 8
FEWEST_PICTURES = 3  # two at once were slower than one after another (convolutional net, 32²)
ACCELERATOR_BYTES = 2**28
ACCELERATOR_PICTURES = 64


def pictures_at_once(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many pictures a pass should take.

    Parameters
    ----------
    width
        Largest number of values in an intermediate result for one picture
        (``JacobianOperator.width``); 0 where it is not known.
    dtype, device
        Of the picture. The clock is not asked, so a run can be repeated.
    """
    on_cpu = device.type == "cpu"
    budget = CPU_BYTES if on_cpu else ACCELERATOR_BYTES
    most = CPU_PICTURES if on_cpu else ACCELERATOR_PICTURES
    bytes_each = width * torch.empty(0, dtype=dtype).element_size()
    count = 0 if width == 0 else min(most, budget // bytes_each)
    return count if count >= FEWEST_PICTURES else 1


class BatchedFisherOperator:
    """F = JᵀJ at each of B pictures; products of all of them in one pass of the model.

    Parameters
    ----------
    model
        As for :class:`FisherOperator`; called with ``(B, C, H, W)``.
    images
        B pictures ``(1, C, H, W)`` of one shape, dtype and device. Copied.
    one_pass
        ``True``: in one pass, or it is an error; ``False``: one after another; ``None``: in one
        pass where the model allows it.
    route, check
        As for :class:`FisherOperator`. The check includes that the pictures do not influence each
        other; it costs B + 2 log₂ B forward passes more. Without it only adjointness is checked.
    chunk_size, recompute, compile, model_dtype, noise, perturbations
        As for :class:`FisherOperator`. In one pass, which takes one column a picture at a time,
        ``chunk_size`` has no effect.

    Attributes
    ----------
    one_pass
        Whether one pass serves all pictures.
    refusal
        Why not, where ``one_pass=None`` fell back; else empty.
    shape
        ``(n, n)``, of each F.
    image_shape, dtype, device
        Of each picture.
    rank_bound
        ``min(m, n)``, or less where the noise says so.
    starts
        One ``(n, s)`` tensor a picture: vectors worth trying first at the bottom.
    responses
        One f(x) ``(m,)`` a picture.

    Raises
    ------
    InputTypeError, ImageError, ModelError
        As :class:`FisherOperator`; with ``one_pass=True`` also where the pictures influence each
        other. A zero Jacobian at any of the pictures is an error.

    Notes
    -----
    In one pass, a picture's products depend on the *number* of pictures and on its place among
    them only through rounding, and not at all on which pictures the others are.
    """

    def __init__(
        self,
        model: Model,
        images: Sequence[Tensor],
        *,
        one_pass: bool | None = None,
        route: str = "auto",
        check: bool = True,
        chunk_size: int | None = None,
        recompute: bool = False,
        compile: bool = False,
        model_dtype: torch.dtype | None = None,
        noise: Noise | None = None,
        perturbations: Perturbations | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "route": route,
            "recompute": recompute,
            "compile": compile,
            "model_dtype": model_dtype,
            "noise": noise,
            "perturbations": perturbations,
        }
        copies = [copy_image(image) for image in images]
        if not copies or len({(c.shape, c.dtype, c.device) for c in copies}) != 1:
            shapes = [tuple(c.shape) for c in copies]
            raise ImageError(f"images: expected pictures of one shape, dtype, device, got {shapes}")
        self.images = copies
        self.noise = noise_or_default(noise)
        self.perturbations = perturbations_or_default(perturbations)
        self.image_shape = tuple(copies[0].shape[1:])
        self.dtype, self.device = copies[0].dtype, copies[0].device
        self.refusal = ""
        self._num_products = 0
        self._stack: _Stack | None = None
        self._apart: list[FisherOperator] = []
        if len(copies) > 1 and one_pass is not False:
            try:
                self._stack = _Stack(model, torch.cat(copies), check, options)
            except ModelError as error:
                if one_pass:
                    raise
                self.refusal = str(error)
        if self._stack is None:
            # What could not be stacked is looked at closely, picture by picture.
            close = check or bool(self.refusal)
            options["chunk_size"] = chunk_size
            self._apart = [FisherOperator(model, c, check=close, **options) for c in copies]
        self.coordinates = [
            coordinates_at(self.perturbations, c.reshape(self.image_shape)) for c in copies
        ]
        first = self.coordinates[0]
        n = copies[0].numel() if first is None else first.size
        self.shape = (n, n)
        # Of all pictures at once, the bound is the same share for each.
        self.rank_bound = (
            self._apart[0].rank_bound
            if self._stack is None
            else self._stack.rank_bound // len(copies)
        )
        self.starts = [start_vectors(*both) for both in zip(copies, self.coordinates, strict=True)]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def one_pass(self) -> bool:
        """Whether one pass of the model serves all pictures."""
        return self._stack is not None

    @property
    def route(self) -> str:
        """Name of the way products are computed."""
        return self._apart[0].route if self._stack is None else self._stack.route

    @property
    def responses(self) -> list[Tensor]:
        """One f(x) ``(m,)`` a picture."""
        if self._stack is None:
            return [operator.jacobian.response for operator in self._apart]
        return list(self._stack.response.reshape(len(self), -1))

    @property
    def num_products(self) -> int:
        """Columns of F·V computed so far over all pictures; all-zero columns are not counted."""
        return self._num_products

    def at(self, place: int) -> _AtPicture:
        """Return F at one picture, as solvers take it."""
        return _AtPicture(self, place)

    def product_eps_at(self, place: int) -> float:
        """Return the relative rounding of products at one picture.

        See :attr:`JacobianOperator.product_eps`.
        """
        if self._stack is None:
            return self._apart[place].product_eps
        return self._stack._product_eps()[place]

    def work_at(self, place: int) -> int:
        """Return the multiplications of one product at one picture, counted."""
        return self._apart[place].work if self._stack is None else self._stack.work

    def apply(
        self, blocks: Mapping[int, Tensor], request: Request = "fisher"
    ) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Return ``(F V, J V)`` for the block of each place that has one.

        Parameters
        ----------
        blocks
            By place among the pictures: ``(n, b)``, b as it comes; ``(m, b)`` for ``"adjoint"``.
        request
            ``"fisher"``, ``"jacobian"`` (J·V, None) or ``"adjoint"`` (Jᵀ·U, None).

        Raises
        ------
        InputError, InputTypeError
            When a block does not fit.
        """
        if request not in ("fisher", "jacobian", "adjoint"):
            raise InputError(f"request: expected fisher, jacobian or adjoint, got {request!r}")
        wrong = [place for place in blocks if not 0 <= place < len(self)]
        if wrong:
            raise InputError(f"blocks: expected places 0 to {len(self) - 1}, got {wrong}")
        if not blocks:
            return {}
        if self._stack is not None:
            results = self._stack.products(blocks, request)
        else:
            results = {i: self._apart[i].apply(block, request) for i, block in blocks.items()}
        if request == "fisher":
            self._num_products += sum(int(count_columns(block)) for block in blocks.values())
        return results


class _AtPicture:
    """F at one picture of a batch, as solvers take it."""

    def __init__(self, batch: BatchedFisherOperator, place: int) -> None:
        self._batch, self._place = batch, place
        embedding, start = batch.coordinates[place], batch.starts[place]
        self.problem = Problem(
            image_shape=batch.image_shape if embedding is None else embedding.shape,
            rank_bound=batch.rank_bound,
            dtype=batch.dtype,
            device=batch.device,
            start=start if start.shape[1] else None,
            product_eps=batch.product_eps_at(place),
            work=batch.work_at(place),
            noise=str(batch.noise),
            perturbations=str(batch.perturbations),
            embedding=embedding,
        )

    def apply(self, block: Tensor, request: Request = "fisher") -> tuple[Tensor, Tensor | None]:
        return self._batch.apply({self._place: block}, request)[self._place]


class _Rows(torch.nn.Module):
    """The model with its output as one row a picture."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = as_written(model)
        # Whose state must be put back after a forward pass; as of a bound method.
        self.owner = getattr(self.model, "__self__", None)
        self.training = bool(getattr(self.model, "training", False))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(B, m)`` for ``(B, C, H, W)``."""
        return flatten_rows(self.model(images), images)


class _Stack(JacobianOperator):
    """The block-diagonal J ``(B m, B n)`` of B pictures handed to the model together."""

    def __init__(
        self, model: Model, images: Tensor, check: bool, options: Mapping[str, Any]
    ) -> None:
        rows = _Rows(model)
        self._count = self._pictures_held = len(images)
        super().__init__(rows, images, check=check, **options)
        self._check_adjoint()
        if check:
            low = options["model_dtype"]
            self._check_apart(rows if low is None else InPrecision(rows, low))

    @staticmethod
    def _take(image: Tensor) -> Tensor:
        return image  # several pictures, checked and copied before they were stacked

    def products(
        self, blocks: Mapping[int, Tensor], request: str
    ) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Return what :meth:`BatchedFisherOperator.apply` does."""
        length = self.shape[0 if request == "adjoint" else 1] // self._count
        checked = {i: self._block(block, length, "block") for i, block in blocks.items()}
        columns: dict[int, list[tuple[Tensor, Tensor | None]]] = {i: [] for i in checked}
        # Column by column: how wide the other pictures' blocks are then touches no picture's bits.
        for j in range(max(block.shape[1] for block in checked.values())):
            width = [i for i, block in checked.items() if j < block.shape[1]]
            stacked = torch.zeros(self._count, length, dtype=self.dtype, device=self.device)
            for i in width:
                stacked[i] = checked[i][:, j]
            for i, column in zip(width, self._column(stacked, request, width), strict=True):
                columns[i].append(column)
        return {i: _side_by_side(parts) for i, parts in columns.items()}

    def _column(
        self, stacked: Tensor, request: str, places: list[int]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Return products (and responses) ``(size, 1)`` for one column at each picture."""
        column = stacked.reshape(-1, 1)
        if request == "fisher":
            products, responses = self._products(column)
            rows = responses.reshape(self._count, -1, 1)
            return [(products.reshape(self._count, -1, 1)[i], rows[i]) for i in places]
        product = self._matmat(column) if request == "jacobian" else self._rmatmat(column)
        return [(product.reshape(self._count, -1, 1)[i], None) for i in places]

    def _draw(self, like: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self._count, like.numel() // self._count, generator=generator)
        return drawn.to(like)

    def _check_adjoint(self) -> None:
        """Raise unless ⟨Jᵢv, u⟩ = ⟨v, Jᵢᵀu⟩ and Jᵢ is not zero, at each picture."""
        v, u = self._draw(self._input, 2), self._draw(self._output, 3)
        pushed = self._matmat(v.reshape(-1, 1)).reshape(u.shape)
        pulled = self._rmatmat(u.reshape(-1, 1)).reshape(v.shape)
        left, right = (pushed * u).sum(1).double(), (v * pulled).sum(1).double()
        scale = (pushed.norm(dim=1) * u.norm(dim=1) + v.norm(dim=1) * pulled.norm(dim=1)).double()
        zero = (~(pushed.any(1) | pulled.any(1))).nonzero().flatten().tolist()
        if zero:
            raise ModelError(
                f"model: expected a response that changes with each picture, got a zero Jacobian "
                f"at {zero} of the {self._count} pictures at once"
            )
        slack = comparison_slack(self.response, self._eps)
        if not bool(((left - right).abs() <= slack * scale).all()):
            raise ModelError(
                "model: expected J and its adjoint at each picture of a batch, got "
                "products that do not match; it is given one picture at a time"
            )

    def _check_apart(self, rows: torch.nn.Module) -> None:
        """Raise unless row i of the response depends on picture i alone.

        In values: against each picture alone. In derivatives: any two pictures differ in a binary
        digit of their places, so with a vector at the pictures with that digit 1 (or 0) only, every
        influence of one picture on another shows in some product as a response elsewhere.
        """
        together = self.response.reshape(self._count, -1)
        # A vector of zeros has products of zero in any precision.
        slack = comparison_slack(self.response)
        with undisturbed(rows, self.device):
            for i in range(self._count):
                alone = respond(rows, self.image[i : i + 1]).detach()
                same = alone.shape == together[i].shape
                if not same or not _close(
                    alone, together[i], max(10 * slack, 4 * (self._eps or 0))
                ):
                    raise _influence(i)
        v = self._draw(self._input, 4)
        places = torch.arange(self._count, device=self.device)
        for digit in range(max(1, math.ceil(math.log2(self._count)))):
            for value in (0, 1):
                chosen = (places >> digit) % 2 == value
                pushed = self._matmat((v * chosen[:, None]).reshape(-1, 1))
                pushed = pushed.reshape(self._count, -1)
                leaked = pushed[~chosen].norm()
                if bool(leaked > slack * pushed.norm()):
                    raise _influence(int((~chosen).nonzero()[0]))


def _side_by_side(
    parts: list[tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor | None]:
    """Join columns; copied, so that no result shares memory with another picture's."""
    responses = [response for _, response in parts if response is not None]
    joined = torch.cat([product for product, _ in parts], dim=1)
    return joined, torch.cat(responses, dim=1) if responses else None


def _close(first: Tensor, second: Tensor, slack: float) -> bool:
    return bool((first - second).norm() <= slack * first.norm().clamp(min=1e-30))


def _influence(place: int) -> ModelError:
    return ModelError(
        f"model: expected a response to picture {place} that does not depend on the other pictures "
        "of the batch, got one that does; it is given one picture at a time"
    )
