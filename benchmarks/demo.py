"""The demo measured: eigenvalues against a dense float64 solution, and what tracking costs.

    python benchmarks/demo.py [--json FILE] [--repeat 5]

Prints the relative error of each eigenvalue of the demo, and the time of ``trainer.fit`` with both
loggers, checkpoints every 50 steps and pictures over the bare ask/tell loop on the same problem, in
pairs within one run; medians. One thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

import eigenexp as ee
from eigenexp.callbacks import ConvergenceLogging, DistortionPictures, SolverCheckpoint
from eigenexp.eigensolvers import make_solver, multiply

SETTINGS: dict[str, Any] = {"k": 2, "which": "both", "tol": 1e-4}


def accuracy(picture: ee.Picture) -> list[dict[str, float]]:
    """Compare the demo's eigenvalues with the squared singular values of the dense Jacobian."""
    operator = ee.FisherOperator(ee.models.OnOff(), picture.tensor)
    spectrum = ee.solve(operator, **SETTINGS)
    true = torch.linalg.svdvals(operator.jacobian.to_dense()).square()
    return [
        {
            "index": int(index),
            "eigenvalue": float(value),
            "dense": float(true[index]),
            "relative_error": abs(float(value) / float(true[index]) - 1),
            "error_over_largest": abs(float(value) - float(true[index])) / float(true[0]),
        }
        for index, value in zip(spectrum.eigenindex.tolist(), spectrum.eigenvalues, strict=True)
    ]


def bare(operator: ee.FisherOperator, pause: float) -> tuple[float, int]:
    """Run the ask/tell loop; return seconds and steps."""
    solver = make_solver(operator, "auto", **SETTINGS)
    began, steps = time.perf_counter(), 0
    while not solver.done:
        block = solver.ask()
        product = multiply(operator, solver.request, block)
        time.sleep(pause)
        solver.tell(*product)
        steps += 1
    return time.perf_counter() - began, steps


class Clock(L.Callback):
    """Time from the first to the last step of a fit."""

    began = ended = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the end of each step."""
        self.ended = time.perf_counter()


class PausedModule(ee.EigendistortionModule):
    """The module with a pause a product, as a slower model would make."""

    pause = 0.0

    def _multiply(self, block: torch.Tensor) -> Any:
        time.sleep(self.pause)
        return super()._multiply(block)


def tracked(picture: ee.Picture, folder: Path, pause: float) -> tuple[float, int]:
    """Run ``trainer.fit`` with everything on; return seconds of the loop and steps."""
    module = PausedModule(ee.models.OnOff(), picture, **SETTINGS)
    module.pause = pause
    mlflow = ee.MLflowLogger(root=folder)
    run_id = mlflow.version or "run"
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=[mlflow, TensorBoardLogger(folder / "tb", name="", version=run_id)],
        callbacks=[
            ee.ConvergenceStopping(),
            ConvergenceLogging(every_n_steps=1),
            DistortionPictures(),
            SolverCheckpoint(folder / "checkpoints", every_n_steps=50),
            clock,
        ],
        max_steps=100_000,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module)
    mlflow.close()
    return clock.ended - clock.began, trainer.global_step


def overhead(picture: ee.Picture, pause: float, repeat: int) -> dict[str, float]:
    """Return milliseconds a step and the ratio, medians over pairs."""
    operator = ee.FisherOperator(ee.models.OnOff(), picture.tensor)
    ratios, extra, base = [], [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            plain, steps = bare(operator, pause)
            full, same = tracked(picture, Path(folder), pause)
        if steps != same:
            raise RuntimeError(f"expected {steps} steps in both, got {same}")
        ratios.append(full / plain)
        base.append(1e3 * plain / steps)
        extra.append(1e3 * (full - plain) / steps)
    return {
        "pause_ms": 1e3 * pause,
        "bare_ms_a_step": statistics.median(base),
        "overhead_ms_a_step": statistics.median(extra),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("lightning"):
            logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    picture = ee.load_picture("camera", crop=[120, 220, 64, 64], dtype=torch.float64)
    rows = [overhead(picture, pause, options.repeat) for pause in (0.0, 0.02)]
    for row in rows:
        print(
            f"product + {row['pause_ms']:.0f} ms: bare {row['bare_ms_a_step']:.2f} ms a step, "
            f"tracking and Lightning {row['overhead_ms_a_step']:+.2f} ms, ratio {row['ratio']:.3f}"
        )
    pairs = accuracy(picture)
    print(f"{'index':>6} {'eigenvalue':>14} {'dense':>14} {'relative':>10} {'over λmax':>10}")
    for pair in pairs:
        print(
            f"{pair['index']:>6} {pair['eigenvalue']:>14.8g} {pair['dense']:>14.8g} "
            f"{pair['relative_error']:>10.1e} {pair['error_over_largest']:>10.1e}"
        )
    if options.json:
        options.json.write_text(json.dumps({"overhead": rows, "accuracy": pairs}, indent=1))


if __name__ == "__main__":
    main()
