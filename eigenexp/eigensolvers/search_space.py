"""A search space with its images under F: the one data structure of the subspace methods.

Rows ``V_I`` are *imaged* (F was applied to them), rows ``V_N`` are the *frontier*; together they
are orthonormal and

    F V_I = V_I G_I + V_N G_N        exactly, so that the residual of a Ritz pair (θ, y) of G_I
    F V_I y − θ V_I y = V_N (G_N y)  costs nothing.

Imaging a frontier row adds the part of its product outside the space as a new frontier row: that is
the Lanczos step, and no image is stored. A row put into the frontier from elsewhere (a
preconditioned residual, a random vector) makes it a Davidson step; both share one space. Thick
restarts keep the form. Sources: G. W. Stewart, "A Krylov-Schur algorithm for large
eigenproblems", SIAM J. Matrix Anal. Appl. 23, 2002; K. Wu and H. Simon, "Thick-restart Lanczos
method for large symmetric eigenvalue problems", same journal 22, 2000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eigenexp.eigensolvers.orthogonalization import project_out, split_off
from eigenexp.eigensolvers.rayleigh_ritz import RitzPairs, ritz_pairs
from eigenexp.errors import ProductError

__all__ = ["SearchSpace"]

# A rest shorter than this many eps of the largest eigenvalue is rounding noise.
_NOISE = 8.0
# Columns of V rotated at once in a restart: bounds the memory it needs.
_CHUNK = 1 << 14


class SearchSpace:
    """Orthonormal rows, imaged ones first, with the coefficients of their images.

    Parameters
    ----------
    n
        Length of the vectors.
    capacity
        Most rows ever held.
    dtype, device
        Of the rows. Coefficients are float64 on the CPU.
    """

    def __init__(self, n: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n = n
        self.capacity = min(capacity, n)
        self.rows = torch.zeros(self.capacity, n, dtype=dtype, device=device)
        self.coefficients = torch.zeros(self.capacity, self.capacity, dtype=torch.float64)
        self.num_imaged = 0
        self.num_frontier = 0
        self.scale = 0.0
        # Length of the part of each image that was dropped: known no better than that.
        self.dropped = torch.zeros(self.capacity, dtype=torch.float64)
        self._ritz: RitzPairs | None = None

    # -- sizes ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Rows held."""
        return self.num_imaged + self.num_frontier

    @property
    def room(self) -> int:
        """Rows that can still be added (a space that is all of Rⁿ needs none)."""
        return self.capacity - self.size if self.capacity < self.n else self.n

    @property
    def is_complete(self) -> bool:
        """Whether the imaged rows span all of Rⁿ."""
        return self.num_imaged == self.n

    @property
    def eps(self) -> float:
        """Rounding unit of the rows' dtype."""
        return torch.finfo(self.rows.dtype).eps

    @property
    def noise(self) -> float:
        """Length below which a rest is rounding noise."""
        return _NOISE * self.eps * self.scale

    # -- growing -------------------------------------------------------------------------------

    def add(self, vector: Tensor) -> bool:
        """Put the part of ``vector`` ``(n,)`` outside the space into the frontier.

        Returns
        -------
        bool
            False, and nothing changed, when the vector lies in the space but for noise.
        """
        if self.size >= min(self.capacity, self.n):
            return False
        rest = vector.clone()
        length = float(torch.linalg.vector_norm(rest))
        if not 0.0 < length < math.inf:
            return False
        rest /= length
        rest, _, norm = split_off(rest, self.rows[: self.size])
        if norm <= 100 * self.eps:
            return False
        self.rows[self.size] = rest / norm
        if norm < 1e-2:  # what little was left may lean towards the space: once more
            again, _, norm = split_off(self.rows[self.size].clone(), self.rows[: self.size])
            if norm < 0.5:
                return False
            self.rows[self.size] = again / norm
        self.num_frontier += 1
        return True

    def bring_forward(self, chosen: Sequence[int]) -> Tensor:
        """Make these frontier rows the first of the frontier, and return them, ``(n, b)``.

        They are what :meth:`image` takes next.
        """
        order = list(chosen)
        for target, place in enumerate(order, start=self.num_imaged):
            if place != target:
                self.rows[[place, target]] = self.rows[[target, place]]
                self.coefficients[[place, target]] = self.coefficients[[target, place]]
                order = [place if later == target else later for later in order]
        first = self.num_imaged
        self._ritz = None
        return self.rows[first : first + len(order)].T.clone()

    def image(self, products: Tensor, responses: Tensor | None = None) -> None:
        """Take the products of the first frontier rows.

        Parameters
        ----------
        products
            ``(n, b)``: F times the first b frontier rows.
        responses
            ``(m, b)`` or None: J times those rows; only checked against the products.

        Raises
        ------
        ProductError
            When the products cannot come from F = JᵀJ: not symmetric within rounding, or a
            negative Rayleigh quotient. The space stays as it was.
        """
        size, scale, imaged = self.size, self.scale, self.num_imaged
        columns: list[tuple[Tensor, float]] = []
        added = self.rows[:0]
        for i in range(products.shape[1]):
            product = products[:, i].clone()
            length = float(torch.linalg.vector_norm(product))
            scale = max(scale, length)
            # Symmetry knows these before the product does: ⟨v_l, F v_i⟩ = ⟨F v_l, v_i⟩.
            known = torch.zeros(size + len(added), dtype=torch.float64)
            known[:imaged] = self.coefficients[imaged + i, :imaged]
            self._subtract(product, known)
            # Its own part first, so that the full pass below only corrects: one pass is enough
            # then, where a pass that removes most of a vector would spread the basis' own errors.
            own = slice(imaged, imaged + products.shape[1])
            known[own] += project_out(product[None], self.rows[own])[0].double().cpu()
            basis = self.rows[:size] if len(added) == 0 else torch.cat([self.rows[:size], added])
            rest, found, norm = split_off(product, basis)
            total = known + found
            skew = found[:imaged].abs().max() if imaged else torch.zeros(())
            for j, (other, _) in enumerate(columns):
                skew = torch.maximum(skew, (total[imaged + j] - other[imaged + i]).abs())
            self._check(float(skew), float(total[imaged + i]), scale, responses, i)
            if len(basis) >= self.n or norm <= _NOISE * self.eps * scale:
                norm = 0.0
            elif len(basis) >= self.capacity:
                raise RuntimeError("the search space is full: it must be restarted before asking")
            columns.append((total, norm))
            if norm > 0.0:
                added = torch.cat([added, (rest / norm)[None]])
        for total, norm in columns:
            self.coefficients[: len(total), self.num_imaged] = total
            # What was measured last counts: a dropped part of an older image is back.
            self.coefficients[self.num_imaged, : self.num_imaged] = total[: self.num_imaged]
            if norm > 0.0:
                self.coefficients[len(total), self.num_imaged] = norm
            self.num_imaged += 1
        self.rows[size : size + len(added)] = added
        self.num_frontier += len(added) - len(columns)
        self.scale = scale
        self._ritz = None

    def image_again(self, place: int, product: Tensor) -> float:
        """Replace the image of an imaged row by a fresh product; mends drift in low precision.

        Returns
        -------
        float
            Norm of what the fresh product has outside the space; it joins the frontier when it is
            more than noise and there is room.
        """
        size = self.size
        rest, total, norm = split_off(product.clone(), self.rows[:size])
        self.coefficients[:, place] = 0.0
        self.coefficients[:size, place] = total
        self.dropped[place] = 0.0
        if norm > self.noise and size < min(self.capacity, self.n):
            self.rows[size] = rest / norm
            self.coefficients[size, place] = norm
            self.num_frontier += 1
        self._ritz = None
        return norm

    def _subtract(self, product: Tensor, known: Tensor) -> None:
        places = known.nonzero()[:, 0].tolist()
        values = known.to(dtype=product.dtype, device=product.device)
        if len(places) > 4:
            last = places[-1] + 1
            product.addmv_(self.rows[:last].T, values[:last], alpha=-1.0)
            return
        for i in places:
            product.addcmul_(self.rows[i], values[i], value=-1.0)

    def _check(
        self, skew: float, energy: float, scale: float, responses: Tensor | None, column: int
    ) -> None:
        dropped = float(torch.linalg.vector_norm(self.dropped[: self.num_imaged]))
        slack = math.sqrt(self.eps) * scale + 2 * dropped
        if skew > slack:
            raise ProductError(
                f"tell: expected products of a symmetric F = JᵀJ, got ⟨u, Fv⟩ − ⟨Fu, v⟩ = "
                f"{skew:.2g} where λmax is {scale:.2g}; check that the model is deterministic and "
                "its derivative exact, or solve in float64"
            )
        if energy < -slack:
            raise ProductError(
                f"tell: expected products of F = JᵀJ, got a negative ⟨v, Fv⟩ = {energy:.2g}; "
                "F must be positive semi-definite"
            )
        if responses is not None:
            squared = float(responses[:, column].double().square().sum())
            if not abs(squared - energy) <= 10 * slack:
                raise ProductError(
                    f"tell: expected responses J·v with ‖Jv‖² = ⟨v, Fv⟩ = {energy:.6g}, got "
                    f"{squared:.6g}; pass the responses of the same block, or none"
                )

    # -- the projected problem -----------------------------------------------------------------

    def ritz(self) -> RitzPairs:
        """Return the Ritz pairs of the imaged rows, decreasing; kept until the space changes."""
        if self._ritz is None:
            p, q = self.num_imaged, self.size
            self._ritz = ritz_pairs(
                self.coefficients[:p, :p], self.coefficients[p:q, :p], self.dropped[:p]
            )
        return self._ritz

    def vectors(self, places: Sequence[int]) -> Tensor:
        """Return Ritz vectors as rows ``(w, n)``, unit norm."""
        Y = self.ritz().coordinates[:, list(places)].to(self.rows)
        X = Y.T @ self.rows[: self.num_imaged]
        X /= torch.linalg.vector_norm(X, dim=1, keepdim=True)
        return X

    def residual_vectors(self, places: Sequence[int]) -> Tensor:
        """Return F y − θ y of Ritz pairs as rows ``(w, n)``."""
        g = self.ritz().outside[:, list(places)].to(self.rows)
        residuals: Tensor = g.T @ self.rows[self.num_imaged : self.size]
        return residuals

    def rotate(self, places: Sequence[int]) -> None:
        """Make the chosen Ritz vectors the imaged rows, in this order; drop the others.

        A thick restart; with all places only the basis changes. The frontier is compressed when
        it is larger than what is kept.
        """
        ritz, p, f = self.ritz(), self.num_imaged, self.num_frontier
        keep = list(places)
        Y = ritz.coordinates[:, keep]
        outside = ritz.outside[:, keep]
        turn = torch.eye(f, dtype=torch.float64)
        if f > len(keep):
            # G_N Y = Q S Wᵀ: the frontier rows Qᵀ V_N hold every residual that is kept.
            Q, S, Wh = torch.linalg.svd(outside, full_matrices=False)
            count = max(1, int((self.noise < S).sum()))
            turn = Q[:, :count]
            outside = S[:count, None] * Wh[:count]
        self._multiply_rows(Y.T, turn.T, p, f)
        m, g = len(keep), turn.shape[1]
        self.dropped[:m] = Y.T.abs() @ self.dropped[:p]
        self.dropped[m:] = 0.0
        self.coefficients.zero_()
        self.coefficients[:m, :m] = torch.diag(ritz.values[keep])
        self.coefficients[m : m + g, :m] = outside
        self.num_imaged, self.num_frontier = m, g
        self._ritz = None

    def replace(self, kept: int, combinations: Tensor) -> None:
        """Keep the first imaged rows; the frontier becomes a basis of combinations of all rows.

        Parameters
        ----------
        kept
            Imaged rows that stay, with their images known within their residuals only.
        combinations
            ``(size, b)``: coordinates; those on the kept rows must be zero. Dependent columns
            give fewer rows.
        """
        left, sizes, _ = torch.linalg.svd(combinations, full_matrices=False)
        count = int((sizes > self.noise).sum())
        p, f = self.num_imaged, self.num_frontier
        self.dropped[:kept] += torch.linalg.vector_norm(self.coefficients[p : p + f, :kept], dim=0)
        self.dropped[kept:] = 0.0
        keep = torch.eye(p, dtype=torch.float64)[:kept]
        everything = torch.cat([keep, torch.zeros(kept, f, dtype=torch.float64)], dim=1)
        self._multiply_rows(torch.cat([everything, left[:, :count].T]), torch.zeros(0, 0), p + f, 0)
        self.coefficients[kept:] = 0.0
        self.coefficients[:, kept:] = 0.0
        self.num_imaged, self.num_frontier = kept, count
        self._ritz = None

    def clear(self) -> None:
        """Drop every row; the scale stays."""
        self.num_imaged = self.num_frontier = 0
        self.coefficients.zero_()
        self.dropped.zero_()
        self._ritz = None

    def forget_frontier(self) -> None:
        """Drop the frontier: the images are then known only within their residuals."""
        p, q = self.num_imaged, self.size
        self.dropped[:p] += torch.linalg.vector_norm(self.coefficients[p:q, :p], dim=0)
        self.coefficients[p:q] = 0.0
        self.num_frontier = 0
        self._ritz = None

    def _multiply_rows(self, left: Tensor, turn: Tensor, p: int, f: int) -> None:
        # In place, a few columns at a time: no second basis is ever held.
        left, turn = left.to(self.rows), turn.to(self.rows)
        for begin in range(0, self.n, _CHUNK):
            part = self.rows[:, begin : begin + _CHUNK]
            imaged = left @ part[:p]
            frontier = turn @ part[p : p + f]
            part[: len(left)] = imaged
            part[len(left) : len(left) + len(turn)] = frontier

    # -- state ---------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Return copies of everything, as tensors and numbers."""
        q = self.size
        return {
            "rows": self.rows[:q].clone(),
            "coefficients": self.coefficients[:q, :q].clone(),
            "num_imaged": self.num_imaged,
            "num_frontier": self.num_frontier,
            "scale": self.scale,
            "dropped": self.dropped[:q].clone(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`export` returned."""
        rows = state["rows"]
        q = len(rows)
        self.rows.zero_()
        self.rows[:q] = rows.to(self.rows)
        self.coefficients.zero_()
        self.coefficients[:q, :q] = state["coefficients"].to(torch.float64).cpu()
        self.num_imaged = int(state["num_imaged"])
        self.num_frontier = int(state["num_frontier"])
        self.scale = float(state["scale"])
        self.dropped.zero_()
        self.dropped[:q] = state["dropped"].to(torch.float64).cpu()
        self._ritz = None
