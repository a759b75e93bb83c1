"""Pictures that share a batch: who is in it follows from the numbers alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import eigenexp as ee
from eigenexp.errors import CheckpointError
from eigenexp.operators import BatchedFisherOperator
from eigenexp.pictures.sources import PictureSource, picture_sources
from eigenexp.study.cohort import Cohort, Finished, SolveSettings
from eigenexp.study.planning import cohorts
from tests.problems import Small

SOLVER = {"method": "lanczos", "k": 1, "tol": 1e-8, "seed": 0}


def settings(batch_size: int, **solver: Any) -> SolveSettings:
    chosen = {**SOLVER, **solver}
    return SolveSettings(chosen, batch_size, "auto", torch.float64, torch.device("cpu"))


def sources(pictures: list[Tensor]) -> list[PictureSource]:
    return picture_sources(list(pictures), channels="keep", dtype=torch.float64)


def run(cohort: Cohort) -> dict[int, Finished]:
    finished: dict[int, Finished] = {}
    while not cohort.done:
        for picture in cohort.turn():
            assert picture.position not in finished
            finished[picture.position] = picture
    return finished


def same(a: Finished, b: Finished) -> bool:
    if a.spectrum is None or b.spectrum is None:
        return a.spectrum is b.spectrum
    return torch.equal(a.spectrum.eigenvalues, b.spectrum.eigenvalues) and torch.equal(
        a.spectrum.eigenvectors, b.spectrum.eigenvectors
    )


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_each_picture_gets_its_own_dense_spectrum(
    batch_size: int, model: Small, pictures: list[Tensor]
) -> None:
    cohort = Cohort(model, sources(pictures), range(7), settings(batch_size))
    finished = run(cohort)
    assert sorted(finished) == list(range(7))
    for position, picture in finished.items():
        assert picture.spectrum is not None
        values = torch.linalg.eigvalsh(
            ee.FisherOperator(model, pictures[position]).to_dense()
        ).flip(0)
        torch.testing.assert_close(
            picture.spectrum.eigenvalues, values[[0, -1]], rtol=0, atol=1e-7 * float(values[0])
        )
        assert picture.spectrum.eigenvectors.shape == (2, 1, 6, 6)
        assert picture.history[-1]["worst_residual"] <= SOLVER["tol"]
        assert picture.history[-1]["products"] == picture.spectrum.num_products
    products = sum(f.spectrum.num_products for f in finished.values() if f.spectrum)
    assert cohort.num_products == products  # a finished picture costs nothing more


def test_alone_the_result_is_that_of_the_bare_loop(model: Small, pictures: list[Tensor]) -> None:
    finished = run(Cohort(model, sources(pictures), range(7), settings(1)))
    for position, picture in finished.items():
        bare = ee.solve(ee.FisherOperator(model, pictures[position]), **SOLVER)
        assert picture.spectrum is not None
        assert torch.equal(picture.spectrum.eigenvectors, bare.eigenvectors)


def test_finished_pictures_make_room_for_waiting_ones(
    model: Small, pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eigenexp.study.cohort.SET_UP_PASSES", 0.5)
    members: list[list[int]] = []

    def spy(model: Small, images: list[Tensor], **options: Any) -> BatchedFisherOperator:
        members.append(
            [i for image in images for i, one in enumerate(pictures) if torch.equal(one, image)]
        )
        return BatchedFisherOperator(model, images, **options)

    monkeypatch.setattr("eigenexp.study.cohort.BatchedFisherOperator", spy)
    finished = run(Cohort(model, sources(pictures), range(7), settings(3, tol=1e-2)))
    assert sorted(finished) == list(range(7))
    assert members[0] == [0, 1, 2]
    assert any(set(before) & set(after) for before, after in itertools.pairwise(members))
    assert max(len(batch) for batch in members) == 3


@pytest.mark.parametrize("cut", [1, 4, 9, 15, 22])
def test_resumed_anywhere_every_picture_is_the_same_and_none_is_solved_twice(
    cut: int, model: Small, pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eigenexp.study.cohort.SET_UP_PASSES", 0.5)
    whole = run(Cohort(model, sources(pictures), range(7), settings(3, tol=1e-3)))
    broken = Cohort(model, sources(pictures), range(7), settings(3, tol=1e-3))
    # The state saved is older than the last pictures finished, as after a kill.
    known, state, turns = {}, broken.state_dict(), 0
    while turns < cut + 12 and not broken.done:
        for picture in broken.turn():
            known[picture.position] = {"turn": picture.turn, "status": "solved"}
        turns += 1
        if turns == cut:
            state = broken.state_dict()
    resumed = Cohort(model, sources(pictures), range(7), settings(3, tol=1e-3), known)
    resumed.load_state_dict(state)
    rest = run(resumed)
    assert sorted([*known, *rest]) == list(range(7))
    for position, picture in rest.items():
        assert same(picture, whole[position])
        assert picture.turn == whole[position].turn


def test_without_a_saved_state_finished_pictures_are_not_solved_again(
    model: Small, pictures: list[Tensor]
) -> None:
    whole = run(Cohort(model, sources(pictures), range(7), settings(3)))
    known = {p: {"turn": whole[p].turn, "status": "solved"} for p in (0, 1, 4)}
    again = Cohort(model, sources(pictures), range(7), settings(3), known)
    rest = run(again)
    assert sorted(rest) == [2, 3, 5, 6]
    assert all(same(rest[p], whole[p]) for p in rest)
    assert again.num_products == sum(
        f.spectrum.num_products for f in rest.values() if f.spectrum is not None
    )


def test_a_picture_that_fails_stops_no_other(model: Small, pictures: list[Tensor]) -> None:
    def touchy(x: Tensor) -> Tensor:
        return torch.where(x > 2, x / 0 * 0, model(x)) if x.ndim else x

    spoiled = [p.clone() for p in pictures]
    spoiled[2] *= torch.nan
    dark = torch.zeros_like(pictures[0])
    good = sources([spoiled[0], pictures[1], pictures[3], dark, pictures[4]])
    bad = PictureSource("bad", "nowhere.png", sources([spoiled[2]])[0].load)
    every = [good[0], bad, *good[1:]]

    def square(x: Tensor) -> Tensor:
        return x.square() + x.square().square()

    finished = run(Cohort(square, every, range(6), settings(3)))
    assert sorted(finished) == list(range(6))
    errors = {p: f.error for p, f in finished.items() if f.error}
    assert sorted(errors) == [1, 4]
    assert "NaN" in errors[1]
    assert "zero Jacobian" in errors[4]
    assert all("\n" not in error for error in errors.values())


def test_pictures_of_several_sizes_are_batched_by_size(
    model: Small, pictures: list[Tensor]
) -> None:
    small = [p[..., :5] for p in pictures]
    mixed = [pictures[0], pictures[1], small[2], small[3], pictures[4]]
    finished = run(Cohort(model, sources(mixed), range(5), settings(4)))
    assert [f.spectrum.num_pixels for _, f in sorted(finished.items()) if f.spectrum] == [
        36,
        36,
        30,
        30,
        36,
    ]


def test_another_picture_under_the_same_name_is_refused(
    model: Small, pictures: list[Tensor]
) -> None:
    cohort = Cohort(model, sources(pictures), range(7), settings(3))
    cohort.turn()
    changed = [pictures[0] * 0.5, *pictures[1:]]
    with pytest.raises(CheckpointError, match="another one under that name"):
        Cohort(model, sources(changed), range(7), settings(3)).load_state_dict(cohort.state_dict())


def test_cohorts_depend_on_the_pictures_alone() -> None:
    assert cohorts(3, 1) == [[0], [1], [2]]
    assert [len(c) for c in cohorts(16, 4)] == [4, 4, 4, 4]
    assert [len(c) for c in cohorts(200, 8)] == [13] * 15 + [5]
    assert {len(c) for c in cohorts(6400, 8)} == {32}
    assert cohorts(5, 4, 2) == [[0, 1], [2, 3], [4]]
