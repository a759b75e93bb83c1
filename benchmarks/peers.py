"""Other public eigensolvers on the same problems, every product counted.

Each is asked for a residual of ``tol · λmax``, with what helps it handed over for nothing: the true
λmax, the true λ where its tolerance is relative to it, a shift of exactly λmax. Each stores at most
40 vectors. A cell that wants both ends takes two of their runs.

PRIMME       DEFAULT_MIN_MATVECS, its own basis or one of 40 vectors, whichever needs fewer; absent
             where it is not installed (``pip install primme`` builds it, given BLAS and LAPACK)
eigsh        SciPy's ARPACK: ``LA`` of F at the top, ``LA`` of λmax·I − F at the bottom
LOBPCG       SciPy's, block size k, without a preconditioner
plenoptic    its power iteration (two products a step and column), stopped for it at the first step
             where the residual is small enough; the shift is λmax; at most 20 000 products. Run in
             the eigenbasis of F, where its iteration is the same and its products are cheap.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, lobpcg
from solver_problems import TOLERANCES, Cell, Problem, wrong_pairs
from torch import Tensor

try:
    import primme
except ImportError:  # needs a BLAS and a LAPACK to link with when it is installed
    primme = None

Array = NDArray[np.float64]
CAP = 20_000


@dataclass(frozen=True)
class Found:
    """Pairs of one end, ``(k,)`` and ``(n, k)`` in any order, and the products they took."""

    values: Array
    vectors: Array
    products: int
    converged: bool


class Counted(LinearOperator):
    """F, or σI − F, that counts the columns it is multiplied with."""

    def __init__(self, matrix: Tensor, shift: float | None = None) -> None:
        super().__init__(np.dtype(np.float64), tuple(matrix.shape))
        self._matrix, self._shift = matrix.numpy(), shift
        self.products = 0

    def _matmat(self, block: Array) -> Array:
        block = np.asarray(block).reshape(self.shape[0], -1)
        self.products += block.shape[1]
        product: Array = self._matrix @ block
        return product if self._shift is None else self._shift * block - product

    def _matvec(self, vector: Array) -> Array:
        return self._matmat(vector)[:, 0]


def start(problem: Problem, seed: int, columns: int) -> Array:
    """Return random columns; the first is where our solvers and the yardstick start."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(columns, problem.n, generator=generator, dtype=torch.float64)
    return drawn.T.numpy().copy()


def by_primme(problem: Problem, end: str, k: int, tol: float, seed: int) -> Found:
    """PRIMME's GD+k.

    Beside the start it is given, it draws a second vector, the same one in every run, whose luck
    would count in every seed. Random signs, F → S F S with S = diag(±1), make it differ by seed.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    signs = torch.randint(2, (problem.n, 1), generator=generator).double() * 2 - 1
    signed = signs * problem.fisher * signs.T
    runs = []
    for basis in (None, 40):
        operator = Counted(signed)
        options = {} if basis is None else {"ncv": basis}
        converged = True
        try:
            values, vectors = primme.eigsh(
                operator,
                k,
                which="LA" if end == "top" else "SA",
                v0=signs.numpy() * start(problem, seed, 1),
                tol=tol,
                method="PRIMME_DEFAULT_MIN_MATVECS",
                convtest=lambda value, vector, residual: residual <= tol * problem.scale,
                maxiter=CAP,
                return_unconverged=True,
                **options,
            )
        except primme.PrimmeError:
            values, vectors, converged = np.zeros(0), np.zeros((problem.n, 0)), False
        runs.append(Found(values, signs.numpy() * vectors, operator.products, converged))
    return min(runs, key=lambda run: (not run.converged, run.products))


def by_eigsh(problem: Problem, end: str, k: int, tol: float, seed: int) -> Found:
    """ARPACK, shifted at the bottom."""
    shift = problem.scale if end == "bottom" else None
    operator = Counted(problem.fisher, shift)
    true = problem.values[k - 1] if end == "top" else problem.scale - problem.values[-k]
    relative = tol * problem.scale / max(float(true), tol * problem.scale)
    try:
        values, vectors = eigsh(
            operator,
            k,
            which="LA",
            v0=start(problem, seed, 1)[:, 0],
            tol=min(relative, 1.0),
            ncv=40 if end == "bottom" else None,
            maxiter=CAP,
        )
        converged = True
    except ArpackNoConvergence as error:
        values, vectors, converged = error.eigenvalues, error.eigenvectors, False
    if shift is not None:
        values = shift - values
    return Found(values, vectors, operator.products, converged)


def by_lobpcg(problem: Problem, end: str, k: int, tol: float, seed: int) -> Found:
    """SciPy's LOBPCG."""
    operator = Counted(problem.fisher)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it does not converge; judged below
        values, vectors = lobpcg(
            operator,
            start(problem, seed, k),
            largest=end == "top",
            tol=tol * problem.scale,
            maxiter=CAP // k,
        )
    residuals = np.linalg.norm(problem.fisher.numpy() @ vectors - vectors * values, axis=0)
    return Found(
        values, vectors, operator.products, bool(residuals.max() <= 2 * tol * problem.scale)
    )


@functools.lru_cache(maxsize=4)
def _power_iteration(
    problem: Problem, end: str, k: int, seed: int, tol: float
) -> list[tuple[float, Array]]:
    """Return after every step the worst residual over λmax, and the Ritz values.

    The iteration of plenoptic 2.1, ``Eigendistortion._synthesize_power``.
    """
    values, scale = problem.values[:, None], problem.scale
    shift = scale if end == "bottom" else 0.0
    v = values * torch.from_numpy(start(problem, seed, k))
    v = v / v.norm(dim=0)
    history: list[tuple[float, Array]] = []
    while 2 * k * (len(history) + 2) < CAP and not (history and history[-1][0] <= tol):
        v = torch.linalg.qr(values * v - shift * v).Q
        product = values * v
        ritz = (v * product).sum(dim=0)
        worst = float((product - ritz * v).norm(dim=0).max()) / scale
        history.append((worst, ritz.numpy()))
    return history


def by_plenoptic(problem: Problem, end: str, k: int, tol: float, seed: int) -> Found:
    """Plenoptic's orthogonal iteration; its vectors are those of another basis, not returned."""
    history = _power_iteration(problem, end, k, seed, min(tol, *TOLERANCES))
    reached = [step for step, (worst, _) in enumerate(history) if worst <= tol]
    step = reached[0] if reached else len(history) - 1
    products = 2 * k * (step + 2)
    return Found(history[step][1], np.zeros((problem.n, 0)), products, bool(reached))


PEERS: dict[str, Callable[[Problem, str, int, float, int], Found]] = {
    **({} if primme is None else {"PRIMME": by_primme}),
    "eigsh": by_eigsh,
    "LOBPCG": by_lobpcg,
    "plenoptic": by_plenoptic,
}


@dataclass(frozen=True)
class PeerResult:
    """One peer's run on a cell."""

    products: int
    wrong: int
    unconverged: int


class Peers:
    """Runs peers, each end once for all the cells that want it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str, int, float, int], Found] = {}

    def run(self, name: str, problem: Problem, cell: Cell, seed: int) -> PeerResult:
        """Return the peer's products on ``cell`` and how many of its pairs are wrong."""
        products = wrong = unconverged = 0
        for end in ("top", "bottom") if cell.which == "both" else (cell.which,):
            key = (name, problem.name, end, cell.k, cell.tol, seed)
            if key not in self._kept:
                self._kept[key] = PEERS[name](problem, end, cell.k, cell.tol, seed)
            found = self._kept[key]
            one_end = Cell(end, cell.k, cell.tol)
            products += found.products
            unconverged += 0 if found.converged else cell.k
            wrong += self._wrong(name, problem, one_end, found)
        return PeerResult(products, wrong, unconverged)

    @staticmethod
    def _wrong(name: str, problem: Problem, cell: Cell, found: Found) -> int:
        order = np.argsort(-found.values)
        index = cell.wanted(problem.n)
        if name == "plenoptic":
            error = np.abs(found.values[order] - problem.values[index].numpy())
            return int((error > 2 * cell.tol * problem.scale).sum())
        if cell.which == "bottom":
            index = index[len(index) - len(order) :]
        values = torch.from_numpy(np.ascontiguousarray(found.values[order]))
        vectors = torch.from_numpy(np.ascontiguousarray(found.vectors[:, order].T))
        return len(wrong_pairs(problem, cell, index[: len(order)], values, vectors))
