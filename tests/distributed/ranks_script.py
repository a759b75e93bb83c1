"""Fit a study, a mean and a block of columns on as many processes as asked; started by tests.

python -m tests.distributed.ranks_script DEVICES FOLDER [KIND ...] [--steps N] [--slow S]
    [--differ]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

import eigenexp as ee
from eigenexp.distributed import ranks
from eigenexp.errors import InputError
from tests.problems import Small

KINDS = ("pictures", "columns", "average")


def build(kind: str, folder: Path) -> Any:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(7, 1, 6, 6, generator=generator, dtype=torch.float64)
    model = Small().eval()
    if kind == "pictures":
        return ee.StudyModule(
            model,
            pictures,
            folder / "study",
            method="lanczos",
            tol=1e-8,
            batch_size=2,
            cohort=3,
            checkpoint_seconds=0.0,
        )
    if kind == "columns":
        settings = {"method": "power", "k": 3, "which": "top", "tol": 1e-6}
        return ee.EigendistortionModule(model, pictures[:1], parallel="columns", **settings)
    return ee.AverageModule(model, pictures, method="auto", k=2, tol=1e-8)


def differing(folder: Path) -> Iterator[Any]:
    """Yield modules that are not the same in all processes, each in its own respect."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    for kind in KINDS:
        module = build(kind, folder)
        with torch.no_grad():
            module.model.filters.weight += rank
        yield module
    pictures = torch.full((1, 1, 6, 6), 0.5 + rank / 10, dtype=torch.float64)
    yield ee.EigendistortionModule(Small(), pictures, parallel="columns", method="power")
    yield ee.EigendistortionModule(Small(), pictures[:1] * 0 + 0.5, method="power", seed=rank)
    count = 3 + rank
    yield ee.StudyModule(Small(), pictures[:1].expand(count, -1, -1, -1), folder / "other")


def fit_differing(devices: int, folder: Path) -> None:
    """Fit each, and print what the first process is told."""
    for module in differing(folder):
        trainer = L.Trainer(
            accelerator="cpu",
            precision="64-true",
            devices=devices,
            strategy="ddp",
            max_epochs=-1,
            max_steps=20,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module)
        except InputError as error:
            message = f"told: {error}"
        else:
            message = f"told nothing: {type(module).__name__}"
        if trainer.is_global_zero:
            print(message)
    # Else gloo aborts one process in twelve at exit.
    assert ranks.leaving


class Slow(L.Callback):
    """Say who is at work, and take a while over each step, so that a kill meets it."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.strategy.barrier()
        (self.folder / f"started-{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        time.sleep(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("devices", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--differ", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.differ:
        fit_differing(options.devices, options.folder)
        return
    for kind in options.kinds:
        module = build(kind, options.folder)
        callbacks: list[L.Callback] = [Slow(options.folder, options.slow)]
        last = options.folder / kind / "last.ckpt"
        if kind != "pictures":
            callbacks.append(ee.SolverCheckpoint(last.parent, every_n_steps=2))
        trainer = L.Trainer(
            accelerator="cpu",
            precision="64-true",
            devices=options.devices,
            strategy="ddp" if options.devices > 1 else "auto",
            max_epochs=-1,
            max_steps=options.steps,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=kind != "pictures",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        resumed = str(last) if last.exists() and kind != "pictures" else None
        trainer.fit(module, ckpt_path=resumed)
        if trainer.is_global_zero and kind != "pictures":
            module.spectrum().save(options.folder / f"{kind}.safetensors")


if __name__ == "__main__":
    main()
