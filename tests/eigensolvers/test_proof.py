"""Never called converged without proof: witnesses of missed pairs, bounds, checks of products."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.eigensolvers import make_solver, multiply, solve
from eigenexp.eigensolvers.certificates.bounds import lower_bounds, upper_bounds
from eigenexp.eigensolvers.certificates.frozen import Frozen
from eigenexp.eigensolvers.certificates.witness import (
    joint_chance,
    joint_level,
    largest_trace,
    trace_limit,
)
from eigenexp.eigensolvers.numerics import rounding_floor
from eigenexp.eigensolvers.search_space import SearchSpace
from eigenexp.errors import InputError, ProductError
from eigenexp.operators import DenseOperator
from eigenexp.spectrum import StopReason


def orthogonal(n: int, seed: int) -> Tensor:
    draw = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(draw).Q


def prescribed(values: Tensor, seed: int = 0) -> DenseOperator:
    q = orthogonal(len(values), seed)
    matrix = (q * values) @ q.T
    return DenseOperator((matrix + matrix.T) / 2)


def triples(n: int) -> Tensor:
    """Every eigenvalue three times, 1/3n apart: one Krylov space sees one of each."""
    return torch.linspace(1, 0.01, n // 3, dtype=torch.float64).repeat_interleave(3)


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("which", ["top", "bottom", "both"])
@pytest.mark.parametrize("seed", range(4))
def test_no_copy_of_a_repeated_eigenvalue_is_missed(method: str, which: str, seed: int) -> None:
    values = triples(150)
    found = solve(prescribed(values, seed), method, k=4, which=which, tol=1e-3, seed=seed)
    assert found.stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)
    error = (found.eigenvalues - values[found.eigenindex]).abs().max()
    assert float(error) <= 2e-3


def searched(operator: DenseOperator, end: str, seed: int) -> tuple[Frozen, SearchSpace, Tensor]:
    """A space that holds two frozen vectors, rough ones, a witness and a few products of it."""
    n = operator.shape[0]
    eps = torch.finfo(torch.float64).eps
    space = SearchSpace(n, n, dtype=torch.float64, device=torch.device("cpu"), eps=eps, floor=1e-14)
    generator = torch.Generator().manual_seed(seed)

    def randn(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    def grow(direction: Tensor) -> None:
        block = space.fresh(direction, randn)
        space.grow(block, operator.apply(block)[0])

    grow(randn(n, 1))
    for _ in range(8):
        grow(space.products[:, -1:])
    places = [0, 1] if end == "top" else [space.size - 2, space.size - 1]
    frozen = Frozen.of(space, places)
    g = randn(n, 1)
    g = g / g.norm()
    fresh = space.fresh(g, randn)
    frozen.probe = torch.cat([(space.basis.mT @ g)[:, 0], (fresh.mT @ g)[:, 0]])
    space.grow(fresh, operator.apply(fresh)[0])
    for _ in range(5):
        grow(space.products[:, -1:])
    return frozen, space, g


@pytest.mark.parametrize("end", ["top", "bottom"])
@pytest.mark.parametrize("seed", range(4))
def test_the_trace_of_every_pair_beyond_is_at_most_what_is_bounded(end: str, seed: int) -> None:
    """For all λ beyond, between the suspects looked at too: against F′ made dense."""
    operator = prescribed(torch.linspace(2, 0.1, 60, dtype=torch.float64), seed)
    frozen, space, g = searched(operator, end, seed)
    columns, _ = frozen.coefficients(space.size)
    u = space.basis @ columns
    p = torch.eye(60, dtype=torch.float64) - u @ u.T
    view = frozen.view(space)
    assert view is not None
    values = view.evidence.values
    edge = float(values[0]) + 1e-3 if end == "top" else float(values[-1]) - 1e-3
    trace = largest_trace(view.evidence, end, edge, 2.0, limit=1e-6)
    # Any F′ that agrees with what was told may have an eigenvector at any λ: least squares says
    # how much of g it can hold.
    basis = torch.linalg.svd(p @ space.basis).U[:, : space.size - 2]
    tested = torch.linspace(edge, 3.0 if end == "top" else 0.0, 400, dtype=torch.float64)
    deflated = p @ operator.to_dense() @ p
    for value in tested:
        images = (value * basis) - deflated @ basis
        x = torch.linalg.lstsq(images, p @ g).solution
        assert float((p @ g - images @ x).norm()) <= trace.bound * (1 + 1e-9)
    norms, _ = view.evidence.at(tested[:1])
    images = (tested[0] * basis) - deflated @ basis
    x = torch.linalg.lstsq(images, p @ g).solution
    assert float(norms) == pytest.approx(float((p @ g - images @ x).norm()), rel=1e-6)


def test_the_chance_is_that_of_a_random_vector_with_so_small_a_part() -> None:
    n, chance = 400, 0.04
    draws = torch.randn(20_000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = (draws[:, 0] / draws.norm(dim=1)).abs()
    share = float((part <= trace_limit(chance, n)).double().mean())
    assert 0.85 * chance <= share <= 1.1 * chance
    assert trace_limit(1.0, n) == pytest.approx(1 / math.sqrt(2 * n / math.pi))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_chance_of_several_witnesses_is_that_of_their_product(count: int) -> None:
    """Of independent random vectors at one eigenvector; the share is what is said, and no more."""
    n, chance, draws = 300, 0.03, 20_000
    generator = torch.Generator().manual_seed(count)
    level = joint_level(chance, count)
    assert joint_chance(level, count) == pytest.approx(chance)
    product = torch.ones(draws, dtype=torch.float64)
    for _ in range(count):
        g = torch.randn(draws, n, generator=generator, dtype=torch.float64)
        product *= (g[:, 0] / g.norm(dim=1)).abs() / trace_limit(1.0, n)
    share = float((product <= level).double().mean())
    assert 0.8 * chance <= share <= 1.1 * chance


def test_what_is_missed_is_as_rare_as_is_said_though_both_ends_use_the_whole_chance() -> None:
    """Two copies at each end, k = 2, at a chance of a half: what one start vector cannot see."""
    ends, missed, runs = [1.0, 1.0, 0.05, 0.05], 0, 60
    values = torch.cat(
        [torch.tensor(ends[:2]), torch.linspace(0.9, 0.1, 20), torch.full((2,), 0.05)]
    )
    for seed in range(runs):
        ways = {"k": 2, "which": "both", "tol": 1e-3, "miss_chance": 0.5, "seed": seed}
        found = solve(prescribed(values.double(), seed), "lanczos", **ways)
        wrong = (found.eigenvalues - torch.tensor(ends, dtype=torch.float64)).abs() > 3e-3
        missed += bool((wrong & found.converged).any())
    assert missed <= runs * 0.5


@pytest.mark.parametrize(("which", "share"), [("both", 1 / 2), ("top", 1.0)])
def test_edges_that_the_witness_chose_share_the_chance_of_both_ends(
    which: str, share: float
) -> None:
    """All proved edges are looked at anew: the trace beyond each is as small as was allowed."""
    n, chance, nearest = 60, 1e-2, 0.0
    values = torch.cat([torch.tensor([2.0, 1.9]), torch.linspace(1.5, 0.5, n - 4)])
    values = torch.cat([values, torch.tensor([0.1, 0.05])]).double()
    for seed in range(12):
        operator = prescribed(values, seed)
        ways = {"k": 1, "which": which, "tol": 1e-3, "miss_chance": chance, "seed": seed}
        solver = make_solver(operator, "lanczos", **ways)
        while not solver.done:
            solver.tell(*multiply(operator, solver.request, solver.ask()))
        state, like = solver.state_dict()["state"], torch.zeros(0, dtype=torch.float64)
        space = SearchSpace(
            n, n, dtype=torch.float64, device=torch.device("cpu"), eps=1e-16, floor=1e-14
        )
        space.restore(state["space"], like)
        frozen = Frozen()
        frozen.restore(state["certificate"]["frozen"], like)
        view = frozen.view(space)
        assert view is not None
        limit = trace_limit(share * chance / 2 ** state["certificate"]["attempts"], n)
        for end, edge in state["certificate"]["edges"].items():
            beyond = edge - frozen.values[0] if end == "top" else frozen.values[-1] - edge
            if float(beyond) >= 0.99e-3 * float(values[0]):
                continue  # no nearer than the tolerance asks for: each end has the whole chance
            bound = largest_trace(view.evidence, end, edge, 2.0, limit).bound
            assert bound <= limit * (1 + 1e-9)
            nearest = max(nearest, bound / limit)
    # As near as allowed: with half of it, it would not have passed.
    assert nearest > 0.6


def test_a_second_witness_proves_what_rounding_hides_from_the_first() -> None:
    """Float32 at a small chance; saved while the second is followed, it ends with the same bits."""
    picture = ee.load_picture("camera", crop=[120, 220, 32, 32]).tensor
    operator = ee.FisherOperator(ee.models.OnOff(), picture)
    ways = {"k": 2, "which": "both", "tol": 1e-4, "miss_chance": 1e-5}
    solver = make_solver(operator, "davidson", **ways)
    saved = None
    while not solver.done:
        solver.tell(*multiply(operator, solver.request, solver.ask()))
        later = solver.num_products % 20 == 0 and solver.num_products > 200
        if later and saved is None:
            state = solver.state_dict()
            saved = state if state["state"]["certificate"]["witnesses"] > 1 else None
    found = solver.result()
    assert bool(found.converged.all())
    assert found.miss_chance is not None
    assert found.miss_chance <= 1e-5
    assert found.num_products <= 300
    assert saved is not None
    again = make_solver(operator, "davidson", **ways)
    again.load_state_dict(saved)
    while not again.done:
        again.tell(*multiply(operator, again.request, again.ask()))
    assert again.num_products == found.num_products
    assert torch.equal(again.result().eigenvectors, solver.result().eigenvectors)
    assert torch.equal(again.result().error_bounds, found.error_bounds)
    truth = torch.linalg.svdvals(operator.jacobian.to_dense().double()).square()
    error = (found.eigenvalues - truth[found.eigenindex]).abs()
    assert bool((error <= found.error_bounds).all())


def test_a_relative_tolerance_that_float32_cannot_prove_is_said_to_be_unproved() -> None:
    """The tolerance is proved all the same."""
    values = torch.logspace(0, -5, 200, dtype=torch.float64)
    operator = DenseOperator(prescribed(values).to_dense().float())
    ways = {"k": 1, "which": "both", "tol": 1e-3, "relative_tol": 1e-3}
    found = solve(operator, "lanczos", **ways)
    assert bool(found.converged.all())
    assert bool(((found.eigenvalues - values[found.eigenindex]).abs() <= found.error_bounds).all())
    known = float(found.error_bounds[-1]) <= 1e-3 * float(found.eigenvalues[-1])
    assert known or any("not all to relative_tol" in note for note in found.notes)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_from_an_edge_hold_for_every_index(seed: int) -> None:
    """Against random F and rough vectors; Temple's where there is a gap, Weyl's where not."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    fisher = draw @ draw.T
    values, q = torch.linalg.eigh(fisher)
    for end in ("top", "bottom"):
        start = q[:, -3:] if end == "top" else q[:, :3]
        start = start + 0.1 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
        u = torch.linalg.qr(start).Q
        theta, s = torch.linalg.eigh(u.T @ fisher @ u)
        u, theta = u @ s.flip(1), theta.flip(0)
        residuals = fisher @ u - u * theta
        p = torch.eye(20, dtype=torch.float64) - u @ u.T
        rest = torch.linalg.qr(p @ torch.eye(20, dtype=torch.float64)[:, :17]).Q
        inner = torch.linalg.eigvalsh(rest.T @ fisher @ rest)
        gram = residuals.T @ residuals
        if end == "top":
            bounds = upper_bounds(theta, gram, float(inner[-1]))
            assert bool((bounds >= values.flip(0)[:3] - 1e-9).all())
            assert bool((bounds <= theta.clamp(min=float(inner[-1])) + residuals.norm()).all())
        else:
            bounds = lower_bounds(theta, gram, float(inner[0]))
            assert bool((bounds <= values[:3].flip(0) + 1e-9).all())


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
def test_a_certificate_says_how_likely_a_miss_is(method: str) -> None:
    values = torch.linspace(1, 0.1, 80, dtype=torch.float64)
    found = solve(prescribed(values), method, k=2, which="top", tol=1e-3, miss_chance=0.01)
    assert found.stop_reason is StopReason.CONVERGED
    (note,) = [note for note in found.notes if "missed" in note]
    assert float(note.split()[-1]) == found.miss_chance
    assert found.miss_chance is not None
    assert 0 < found.miss_chance <= 0.01
    assert found.certificate == "frozen"


@pytest.mark.parametrize("method", ["lanczos", "davidson", "power", "randomized_svd", "auto"])
def test_without_a_search_the_status_is_unverified_at_once(method: str) -> None:
    values = torch.linspace(1, 0.1, 80, dtype=torch.float64)
    ways = {"k": 2, "which": "top", "tol": 1e-3}
    found = solve(prescribed(values), method, miss_chance=None, **ways)
    assert found.stop_reason is StopReason.UNVERIFIED
    assert found.num_products < solve(prescribed(values), method, **ways).num_products
    assert found.miss_chance is None
    assert any("no search was made" in note for note in found.notes)


def test_the_former_setting_is_taken_with_a_warning() -> None:
    values = torch.linspace(1, 0.1, 30, dtype=torch.float64)
    with pytest.warns(DeprecationWarning, match="miss_chance"):
        found = solve(prescribed(values), "lanczos", which="top", strict_verification=True)
    assert bool(found.converged.all())


@pytest.mark.parametrize("chance", [0.0, 1.0, -1.0])
def test_a_chance_is_between_0_and_1(chance: float) -> None:
    with pytest.raises(InputError, match="miss_chance"):
        solve(prescribed(torch.ones(5).double()), miss_chance=chance)


def test_a_search_that_proves_nothing_is_not_called_converged() -> None:
    """A basis too small to follow g in: said, with how far it came."""
    values = torch.linspace(1, 0.1, 700, dtype=torch.float64)
    found = solve(prescribed(values), "davidson", k=1, which="top", tol=1e-3, miss_chance=1e-300)
    assert found.stop_reason is StopReason.UNVERIFIED
    assert not bool(found.converged.any())
    assert any("excluded one only to a chance" in note for note in found.notes)


CLAIMED = {
    "0.3^i thrice": ([0.3**i for i in range(34) for _ in range(3)][:100], 8, "top", 1e-2),
    "double bottom": ([*torch.logspace(0, -2, 34).tolist(), 1e-3, 1e-3], 2, "bottom", 1e-6),
    "four equal": ([1.0, *([0.95] * 4), *torch.linspace(0.8, 0, 11).tolist()], 8, "top", 1e-2),
    "one far above": ([1e6, *torch.linspace(1, 0, 63).tolist()], 1, "bottom", 1e-2),
    "both double": (
        [1.0, 1.0, *torch.linspace(0.9, 0.1, 60).tolist(), 0.05, 0.05],
        2,
        "both",
        1e-4,
    ),
}


@pytest.mark.parametrize("method", ["lanczos", "davidson", "power", "randomized_svd", "auto"])
@pytest.mark.parametrize("name", CLAIMED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_converged_is_right_and_within_its_bound(
    method: str, name: str, dtype: torch.dtype
) -> None:
    """Spectra on which a witness that is no witness is wrong in most seeds."""
    listed, k, which, tol = CLAIMED[name]
    if method == "randomized_svd" and which != "top":
        return
    values = torch.tensor(listed, dtype=torch.float64)
    for seed in range(3):
        matrix = prescribed(values, seed).to_dense().to(dtype)
        found = solve(DenseOperator(matrix), method, k=k, which=which, tol=tol, seed=seed)
        error = (found.eigenvalues.double() - values[found.eigenindex]).abs()
        assert found.stop_reason in (StopReason.CONVERGED, StopReason.UNVERIFIED)
        if found.stop_reason is StopReason.CONVERGED:
            assert float(error.max()) <= (1 + math.sqrt(k)) * tol * float(values[0])
            assert bool((error <= found.error_bounds).all())


@pytest.mark.parametrize("seed", range(3))
def test_channels_that_a_model_treats_alike_are_all_found(seed: int) -> None:
    """A blur of a colour picture: every eigenvalue three times, at the top."""
    picture = ee.load_picture("coffee", channels="color").tensor.double()
    small = torch.nn.functional.interpolate(picture, size=(16, 16), mode="area")
    operator = ee.FisherOperator(ee.models.Gaussian(7, 1.0).double(), small)
    values = torch.linalg.eigvalsh(operator.to_dense()).flip(0)
    found = solve(operator, k=3, which="top", tol=1e-4, seed=seed)
    assert bool(found.converged.all())
    error = (found.eigenvalues - values[:3]).abs()
    assert bool((error <= found.error_bounds).all())
    assert float(error.max()) <= 3e-4 * float(values[0])
    wide = ee.FisherOperator(ee.models.Gaussian(31, 5.0).double(), small)
    values = torch.linalg.eigvalsh(wide.to_dense()).flip(0)
    found = solve(wide, "lanczos", k=20, which="top", tol=1e-2, seed=seed)
    assert bool(found.converged.all())
    assert found.num_products <= 40
    assert bool(((found.eigenvalues - values[:20]).abs() <= found.error_bounds).all())


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("seed", range(3))
def test_a_relative_tolerance_proves_the_value_of_the_bottom(method: str, seed: int) -> None:
    values = torch.cat(
        [torch.logspace(0, -4, 97, dtype=torch.float64), torch.tensor([1e-5, 1e-5, 3e-6]).double()]
    )
    found = solve(
        prescribed(values, seed), method, k=2, which="bottom", tol=1e-3, relative_tol=0.05
    )
    assert bool(found.converged.all())
    error = (found.eigenvalues - values[-2:]).abs()
    assert bool((error <= found.error_bounds).all())
    assert bool((found.error_bounds <= 0.0501 * found.eigenvalues).all())


def test_a_restart_during_the_search_forgets_no_largest_eigenvalue() -> None:
    values = torch.cat([torch.tensor([1.0]), torch.linspace(2e-2, 1e-3, 149)]).double()
    operator = prescribed(values, 1)
    options = {"k": 1, "which": "bottom", "tol": 1e-4, "seed": 0, "basis_size": 44}
    solver = make_solver(operator, "davidson", **options)
    largest, restarts = 0.0, 0
    while not solver.done:
        before = len(solver.state_dict()["state"]["space"]["basis"])
        solver.tell(*multiply(operator, solver.request, solver.ask()))
        restarts += len(solver.state_dict()["state"]["space"]["basis"]) < before
        scale = solver.progress().scale
        # All limits are shares of it: they must not grow narrower while pairs are proved.
        assert scale >= 0.99 * largest
        largest = max(largest, scale)
    assert restarts > 0
    assert solver.result().stop_reason is StopReason.CONVERGED


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("which", ["top", "bottom", "both"])
def test_an_indefinite_operator_is_refused(method: str, which: str) -> None:
    values = torch.linspace(1, -0.5, 40, dtype=torch.float64)
    with pytest.raises(ProductError, match="no negative eigenvalue"):
        solve(prescribed(values), method, k=2, which=which, tol=1e-6)


def test_davidson_refuses_an_asymmetric_product_and_keeps_its_state() -> None:
    operator = prescribed(torch.linspace(1, 0.1, 30, dtype=torch.float64))
    solver = make_solver(operator, "davidson", k=1, tol=1e-9)
    for _ in range(4):
        solver.tell(*multiply(operator, "fisher", solver.ask()))
    skew = torch.randn(30, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = solver.state_dict()["state"]["space"]["basis"].clone()
    with pytest.raises(ProductError, match="symmetric"):
        solver.tell((skew - skew.T) @ solver.ask())
    assert torch.equal(solver.state_dict()["state"]["space"]["basis"], before)
    while not solver.done:
        solver.tell(*multiply(operator, "fisher", solver.ask()))
    assert solver.stop_reason is StopReason.CONVERGED


@pytest.mark.parametrize("method", ["lanczos", "davidson", "auto"])
def test_a_looser_tolerance_ends_a_loaded_solver_at_once(method: str) -> None:
    values = torch.logspace(0, -3, 60, dtype=torch.float64)
    operator = prescribed(values)
    fine = make_solver(operator, method, k=1, which="top", tol=1e-6)
    while not fine.done:
        fine.tell(*multiply(operator, fine.request, fine.ask()))
    rough = make_solver(operator, method, k=1, which="top", tol=1e-2)
    rough.load_state_dict(fine.state_dict())
    assert rough.done
    assert rough.result().stop_reason is StopReason.CONVERGED
    assert rough.num_products == fine.num_products


@pytest.mark.parametrize("method", ["lanczos", "davidson"])
@pytest.mark.parametrize("seed", range(5))
def test_kato_temple_bounds_hold_and_beat_the_residual(method: str, seed: int) -> None:
    values = torch.cat([torch.tensor([3.0, 2.5]), torch.linspace(1, 0.1, 60)]).double()
    found = solve(prescribed(values, seed), method, k=2, which="top", tol=1e-3, seed=seed)
    for value, bound, residual in zip(
        found.eigenvalues, found.error_bounds, found.residuals, strict=True
    ):
        assert float((values - value).abs().min()) <= float(bound)
        assert float(bound) < 0.5 * float(residual) + 1e-12


def test_a_known_null_space_is_told() -> None:
    jacobian = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = solve(DenseOperator.from_jacobian(jacobian), "davidson", k=3, which="bottom")
    assert found.null_space_dimension >= 18
    assert any("at least 18 dimensions" in note for note in found.notes)
    assert bool(found.converged.all())
    assert float(found.eigenvalues.max()) < 1e-10


def test_the_floor_follows_the_precision_of_the_network() -> None:
    assert rounding_floor(torch.float32, 1000, 1e-2) == 2e-2
    assert rounding_floor(torch.float32, 1000) == rounding_floor(torch.float32, 1000, 1e-9)
    rough = torch.linspace(1, 0.1, 60, dtype=torch.float64)
    problem = prescribed(rough).problem
    assert make_solver(problem, "lanczos").eps == torch.finfo(torch.float64).eps
    coarse = make_solver(replace(problem, product_eps=1e-3), "lanczos")
    assert coarse.eps == 1e-3
    assert coarse.floor == 2e-3
