"""The spectrum card of a run that is there already: its model and picture built again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from eigenexp.analysis import SpectrumCard, spectrum_card
from eigenexp.analysis.card_files import save_card
from eigenexp.errors import CheckpointError, InputError
from eigenexp.experiments.building import operator_options
from eigenexp.experiments.resuming import resumed_picture, saved_settings
from eigenexp.experiments.targets import build_model
from eigenexp.operators import FisherOperator
from eigenexp.plots import card_figure
from eigenexp.runs.folder import find_run
from eigenexp.spectrum import SPECTRUM_FILE, Spectrum
from eigenexp.storage.atomic import write_atomic

__all__ = ["card_of_run"]


def card_of_run(
    name: str, root: str | Path, *, max_products: int = 300, trust: bool = False
) -> tuple[SpectrumCard, dict[str, Path]]:
    """Return the spectrum card of a run of one picture, and the files written among its results.

    Parameters
    ----------
    name, root
        As a person names a run, and the folder of runs.
    max_products
        See :func:`eigenexp.spectrum_card`.
    trust
        Build any class that the run names.

    Raises
    ------
    EigenexpError
        When there is no such run, it is one of many pictures, or it cannot be built again.
    """
    run = find_run(name, root)
    record = run.read_record()
    config = record.get("config")
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{run.record_path}: expected the run's settings, got none")
    settings = saved_settings({**config, "root": str(run.root)}, trust=trust)
    if run.is_study or settings.image.path is not None:
        raise InputError(
            f"run {run.run_id}: expected one of one picture, got one of many; give "
            "analysis.card=true when it begins"
        )
    picture = resumed_picture(run, settings, record, lambda text: None)
    model = build_model(settings.model, trust=trust)
    options = operator_options(settings)
    if isinstance(model, nn.Module):
        own = options.get("model_dtype") or picture.tensor.dtype
        model.requires_grad_(False).eval().to(own)
    path = run.results / SPECTRUM_FILE
    spectrum = Spectrum.load(path) if path.is_file() else None
    with torch.inference_mode(False):
        operator = FisherOperator(model, picture.tensor, **options)
        card = spectrum_card(operator, spectrum, max_products=max_products)
    try:
        run.results.mkdir(parents=True, exist_ok=True)
        paths = save_card(card, run.results)
        buffer = io.BytesIO()
        card_figure(card, title=str(record.get("title") or "")).savefig(buffer, format="png")
        paths["card.png"] = write_atomic(run.results / "card.png", buffer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"{run.results}: expected room and permission to write the card, got "
            f"{error.strerror or error}"
        ) from error
    return card, paths
