"""Runs as sources of stimuli: their pairs, pictures and models, built again and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from eigenexp.checkpoints.provenance import model_fingerprint
from eigenexp.errors import CheckpointError, EigenexpError, InputError
from eigenexp.experiments.noise import build_noise
from eigenexp.experiments.perturbations import build_perturbations
from eigenexp.experiments.resuming import saved_settings
from eigenexp.experiments.targets import build_model
from eigenexp.pictures.picture import Picture
from eigenexp.report import ReportRun, load_runs
from eigenexp.runs.overview import model_name
from eigenexp.stimuli import LeftOut, Source
from eigenexp.storage.hashing import tensor_sha256

__all__ = ["stimulus_sources"]


def stimulus_sources(
    names: Sequence[str], root: str | Path = "mlruns", *, trust: bool = False
) -> tuple[list[Source], list[LeftOut]]:
    """Return what :func:`eigenexp.stimuli.make` takes, of runs; a study has one a picture.

    Parameters
    ----------
    names
        Run ids, the start of one, ``last``, or folders of results.
    root
        Folder of the runs.
    trust
        Build any class that a run names.

    Returns
    -------
    sources, left_out
        Runs that cannot be used, and why.

    Raises
    ------
    InputError
        When none can be used.
    """
    sources: list[Source] = []
    left_out: list[LeftOut] = []
    for name in names:
        try:
            runs = load_runs(name, root)
        except EigenexpError as error:
            left_out.append(LeftOut(name, str(error).removeprefix(f"{name}: ")))
            continue
        for source in _sources(runs, left_out, trust):
            sources.append(source)
    if not sources:
        raise InputError(str(left_out[0]))
    return sources, left_out


def _sources(runs: Sequence[ReportRun], left_out: list[LeftOut], trust: bool) -> Iterator[Source]:
    for run in runs:
        try:
            yield _source(run, trust)
        except EigenexpError as error:
            left_out.append(LeftOut(run.run_id or run.title, str(error)))


def _source(run: ReportRun, trust: bool) -> Source:
    config = run.spectrum.metadata.get("config") or run.facts.get("config")
    if not isinstance(config, Mapping):
        raise CheckpointError(
            "expected a run that records its model, got a spectrum alone; give "
            "eigenexp.stimuli.Source(spectrum, picture, model) to eigenexp.stimuli.make"
        )
    if run.image is None:
        raise CheckpointError(
            "expected a run whose picture is at hand, got none; the distortions have nothing to be "
            "written on"
        )
    settings = saved_settings(config, trust=trust)
    model = build_model(settings.model, trust=trust)
    if isinstance(model, nn.Module):
        model = model.to(run.image.dtype).eval()
    _check_same(model, run)
    known = run.spectrum.metadata.get("picture")
    record: dict[str, Any] = dict(known) if isinstance(known, Mapping) else {}
    record = {"value_range": [0.0, 1.0], **record, "sha256": tensor_sha256(run.image)}
    return Source(
        spectrum=run.spectrum,
        picture=Picture(run.image, run.picture_name or "picture", record),
        model=model,
        noise=build_noise(settings.noise),
        perturbations=build_perturbations(settings.perturbations, settings.image),
        name=model_name(settings.model),
        run_id=run.run_id,
    )


def _check_same(model: Any, run: ReportRun) -> None:
    """Refuse a model that is not the one that was solved: weights drawn anew, a file changed."""
    saved = run.spectrum.metadata.get("model")
    if not isinstance(saved, Mapping) or run.image is None:
        return
    now = model_fingerprint(model, run.image)
    for key, what in (("class", "class"), ("weights_sha256", "weights")):
        if saved.get(key) is not None and saved[key] != now.get(key):
            raise CheckpointError(
                f"model: expected the {what} that was solved ({str(saved[key])[:40]}), got "
                f"{str(now.get(key))[:40]}; give the model's weights in its configuration, or use "
                "eigenexp.stimuli.make with the model itself"
            )
