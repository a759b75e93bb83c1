"""What products tell of all of F: a Krylov sketch, quadratures of random vectors, rows of Jᵀ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Quadrature", "Sketch", "draw", "lanczos_quadratures", "sketch"]

_LARGEST_GROUP = 1 << 27  # values of the bases of the vectors worked on at once
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sketch:
    """Ritz pairs (θ, U) of F on a Krylov space, with what they leave.

    Attributes
    ----------
    values
        θ ``(q,)``, float64 on the CPU, at least 0.
    vectors
        U ``(n, q)``, orthonormal.
    residuals
        R = F U − U θ ``(n, q)``, orthogonal to U.
    num_products
        Columns of F·V that it took.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    num_products: int


def draw(n: int, count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return ``(n, count)`` Gaussian columns, equal on every device."""
    drawn = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return drawn.T.to(like)


def sketch(
    product: Product, known: Tensor, width: int, depth: int, generator: torch.Generator
) -> Sketch:
    """Return the Ritz pairs of F on known vectors and a random block's Krylov space.

    Parameters
    ----------
    product
        V ↦ F V.
    known
        ``(n, k)``, vectors to begin with; none or more.
    width, depth
        Columns of the random block, and how often F is applied to it.

    Notes
    -----
    Block Lanczos with full orthogonalisation (Musco and Musco 2015): k + width · depth products.
    """
    n = len(known)
    width = max(0, min(width, (n - known.shape[1]) // max(depth, 1)))
    block = torch.cat([known, draw(n, width, generator, known)], dim=1)
    basis = block.new_zeros(n, 0)
    images = block.new_zeros(n, 0)
    spent = 0
    for step in range(max(depth, 1)):
        block = _orthonormal(block, basis)
        if not block.shape[1]:
            break
        image = product(block)
        spent += block.shape[1]
        basis, images = torch.cat([basis, block], dim=1), torch.cat([images, image], dim=1)
        # The known vectors are eigenvectors, or nearly: only the random block goes on.
        block = (
            image[:, -min(width, image.shape[1]) :] if width and step + 1 < depth else block[:, :0]
        )
    small = (basis.T @ images).to(torch.float64)
    values, turn = torch.linalg.eigh((small + small.T) / 2)
    turn = turn.to(basis)
    vectors = basis @ turn
    residuals = images @ turn - vectors * values.to(basis)
    residuals = residuals - vectors @ (vectors.T @ residuals)
    return Sketch(values.clamp(min=0).cpu(), vectors, residuals, spent)


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Return an orthonormal basis of what a block adds to an orthonormal one."""
    size = torch.linalg.vector_norm(block, dim=0)
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
    slack = 1e2 * torch.finfo(block.dtype).eps
    kept = torch.linalg.vector_norm(block, dim=0) > slack * size
    block = block[:, kept]
    if not block.shape[1]:
        return block
    q, r = torch.linalg.qr(block)
    diagonal = r.diagonal().abs()
    q = q[:, diagonal > slack * diagonal.max()]
    again = q - basis @ (basis.T @ q)
    clean: Tensor = torch.linalg.qr(again)[0] if again.shape[1] else again
    return clean


@dataclass(frozen=True, eq=False)
class Quadrature:
    """zᵀ f(F) z of one random z, ‖z‖² = n, between two rules (Golub and Meurant 1994).

    Attributes
    ----------
    gauss, radau
        ``(nodes, weights)``, float64; Radau's has a node at 0, where no eigenvalue is below.
    inside
        ``(q,)``, (Uᵀz)² for the sketch's U.
    """

    gauss: tuple[Tensor, Tensor]
    radau: tuple[Tensor, Tensor]
    inside: Tensor

    def of(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Return both values; the true one is between them where derivatives of f keep a sign."""
        (gauss, mass), (radau, share) = self.gauss, self.radau
        return float((mass * function(gauss)).sum()), float((share * function(radau)).sum())


def lanczos_quadratures(
    product: Product,
    found: Sketch,
    count: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[list[Quadrature], int]:
    """Return quadratures of independent random vectors, and the products they took.

    Parameters
    ----------
    product
        V ↦ F V.
    found
        A sketch made before, of other random vectors.
    count, steps
        Vectors, and Lanczos steps each.
    """
    n = len(found.vectors)
    steps = min(steps, n)
    group = max(1, min(count, _LARGEST_GROUP // max(1, n * steps)))
    rules: list[Quadrature] = []
    spent = 0
    while len(rules) < count:
        z = draw(n, min(group, count - len(rules)), generator, found.vectors)
        z = z * (math.sqrt(n) / torch.linalg.vector_norm(z, dim=0))
        inside = (found.vectors.T @ z).to(torch.float64).square().T.cpu()
        alphas, betas, used = _lanczos(product, z / math.sqrt(n), steps)
        spent += used
        for i in range(z.shape[1]):
            gauss, radau = _rules(alphas[i], betas[i], float(n))
            rules.append(Quadrature(gauss, radau, inside[i]))
    return rules, spent


def _lanczos(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor, int]:
    """Return ``(b, steps)`` diagonals and off-diagonals (0 from an invariant space on), products.

    Every column has its own Krylov space, kept and orthogonalised against in full.
    """
    b = start.shape[1]
    alphas = torch.zeros(b, steps, dtype=torch.float64)
    betas = torch.zeros(b, steps, dtype=torch.float64)
    vectors = [start]
    live = torch.ones(b, dtype=torch.bool)
    spent = 0
    slack = 1e2 * torch.finfo(start.dtype).eps
    for j in range(steps):
        image = product(vectors[-1])
        spent += int(live.sum())
        alphas[:, j] = torch.where(live, (vectors[-1] * image).sum(dim=0).double().cpu(), 0.0)
        size = torch.linalg.vector_norm(image, dim=0)
        rest = image
        for _ in range(2):
            for vector in vectors:
                rest = rest - vector * (vector * rest).sum(dim=0)
        beta = torch.linalg.vector_norm(rest, dim=0)
        live = live & (beta > slack * size).cpu()
        betas[:, j] = torch.where(live, beta.double().cpu(), 0.0)
        if not bool(live.any()):
            break
        scale = torch.where(live.to(beta.device), beta, torch.inf)
        vectors.append(rest / scale)
    return alphas, betas, spent


def _rules(
    alphas: Tensor, betas: Tensor, mass: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return Gauss's rule, and Radau's with a node at 0, of a tridiagonal matrix."""
    ends = (betas == 0).nonzero().flatten()
    size = int(ends[0]) + 1 if len(ends) else len(alphas)
    matrix = torch.diag(alphas[:size])
    between = betas[: size - 1]
    matrix += torch.diag(between, 1) + torch.diag(between, -1)
    gauss = _rule(matrix, mass)
    last = float(betas[size - 1])
    if last == 0.0:  # an invariant space: the rule is exact
        return gauss, gauss
    unit = torch.zeros(size, dtype=torch.float64)
    unit[-1] = last**2
    solution, failed = torch.linalg.solve_ex(matrix, unit)
    if failed or not bool(torch.isfinite(solution).all()):
        return gauss, gauss
    # Golub 1973: the last diagonal value that makes 0 an eigenvalue.
    wider = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    wider[:size, :size] = matrix
    wider[-1, -2] = wider[-2, -1] = last
    wider[-1, -1] = solution[-1]
    return gauss, _rule(wider, mass)


def _rule(matrix: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes.clamp(min=0), mass * vectors[0].square()
