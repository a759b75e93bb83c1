"""Trainers that write and print nothing, and a short fit under one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

import eigenexp as ee
from tests.problems import Quadratic

Problem = tuple[Quadratic, Tensor, Tensor]


def quiet_trainer(
    folder: Path, callbacks: list[L.Callback] | None = None, **options: Any
) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_steps": 5000,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
        **options,
    }
    return L.Trainer(callbacks=callbacks, **settings)


def fit(
    problem: Problem,
    folder: Path,
    callbacks: list[L.Callback],
    logger: Any = False,
    steps: int = 30,
    resume: Path | None = None,
) -> ee.EigendistortionModule:
    model, image, _ = problem
    module = ee.EigendistortionModule(model, image, method="power", k=1, tol=1e-15)
    trainer = L.Trainer(
        max_steps=steps,
        precision="64-true",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(c, ee.SolverCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    trainer.fit(module, ckpt_path=None if resume is None else str(resume))
    return module
