"""How far a study is, and how long it will take: said only where something is known."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from eigenexp.callbacks.progress_bar import digits_done
from eigenexp.callbacks.sending import forget_points_from
from eigenexp.errors import InputError
from eigenexp.modules.study import StudyModule

__all__ = ["StudyLogging", "StudyProgressBar", "TimeLeft", "time_left"]


@dataclass(frozen=True)
class TimeLeft:
    """Seconds left, as a range: twice the standard error of the mean cost of a picture."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = _spell(self.low), _spell(self.high)
        return f"{low} left" if low == high else f"{low} to {high} left"


def time_left(elapsed: float, costs: Sequence[float], begun: float, left: int) -> TimeLeft | None:
    """Estimate the time left from what this session has done; ``None`` before the first picture.

    Parameters
    ----------
    elapsed
        Seconds of this session, over all its processes at once.
    costs
        Products that each picture finished in this session took.
    begun
        Pictures' worth of work in pictures begun and not finished, each the part in [0, 1] of its
        way to the tolerance, on the log scale on which residuals fall.
    left
        Pictures not finished.

    Notes
    -----
    The rate is elapsed time over pictures' worth of work, so the share of devices is in it. How
    sure it is follows from how much the pictures differ so far; one picture alone says little, and
    the range is then a factor of two each way.
    """
    done = len(costs)
    if done == 0:
        return None
    mean = sum(costs) / done
    each = elapsed / (done + begun)
    expected = each * max(0.0, left - begun)
    if done == 1 or mean == 0:
        return TimeLeft(expected / 2, expected * 2)
    deviation = math.sqrt(sum((cost - mean) ** 2 for cost in costs) / (done - 1)) / mean
    # The mean so far is uncertain, and so is the sum of those to come.
    doubt = 2 * deviation * math.sqrt(1 / done + 1 / max(1, left))
    return TimeLeft(expected * max(0.0, 1 - doubt), expected * (1 + doubt))


def _spell(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def study_module(pl_module: L.LightningModule) -> StudyModule:
    """Return the module, typed; refuse others."""
    if not isinstance(pl_module, StudyModule):
        raise InputError(
            f"callback: expected a StudyModule, got {type(pl_module).__name__}; this callback "
            "reads its pictures"
        )
    return pl_module


class _Watch:
    """Counts what was finished since the fit began, by all processes, from their records."""

    def __init__(self, module: StudyModule) -> None:
        self.module = module
        self.began = time.monotonic()
        self.before = set(module.folder.records())

    def look(self) -> dict[str, Any]:
        records = self.module.folder.records()
        fresh = [record for p, record in records.items() if p not in self.before]
        cohort = self.module.cohort
        progress = [] if cohort is None else cohort.progress()
        ranks = self.module.trainer.world_size
        begun = ranks * sum(digits_done(p.worst, p.tol) for p in progress)
        left = self.module.num_pictures - len(records)
        costs = [float(r["num_products"]) for r in fresh if r["status"] != "failed"]
        return {
            "done": len(records),
            "failed": sum(record["status"] == "failed" for record in records.values()),
            "products": sum(record.get("num_products", 0) for record in records.values()),
            "left": time_left(time.monotonic() - self.began, costs, min(begun, left), left),
        }


class StudyLogging(L.Callback):
    """Log how many pictures are done to every logger, at most every ``every_seconds``.

    The step of each point is the number of pictures finished, which goes on after a resumption.
    """

    def __init__(self, every_seconds: float = 2.0) -> None:
        self.every_seconds = every_seconds
        self._watch: _Watch | None = None
        self._last = (0.0, -1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count, from what was done before."""
        self._watch = _Watch(study_module(pl_module)) if trainer.is_global_zero else None
        if self._watch is not None:
            for logger in trainer.loggers:
                forget_points_from(logger, len(self._watch.before) + 1)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Log when due."""
        if time.monotonic() - self._last[0] >= self.every_seconds:
            self._log(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the end."""
        self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        if self._watch is None:
            return
        seen = self._watch.look()
        changed = seen["done"] != self._last[1]
        self._last = (time.monotonic(), seen["done"])
        if not changed:
            return
        metrics = {
            "pictures_done": float(seen["done"]),
            "pictures_failed": float(seen["failed"]),
            "products": float(seen["products"]),
        }
        if seen["left"] is not None:
            metrics["seconds_left"] = (seen["left"].low + seen["left"].high) / 2
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=seen["done"])


class StudyProgressBar(TQDMProgressBar):
    """A bar of pictures: done, failed, and the time left as far as it can be known.

    Parameters
    ----------
    every_seconds
        Seconds between redraws.
    """

    def __init__(self, every_seconds: float = 1.0) -> None:
        super().__init__(refresh_rate=1)
        self.every_seconds = every_seconds
        self._watch: _Watch | None = None
        self._drawn = 0.0

    def init_train_tqdm(self) -> Tqdm:
        """Return a bar as long as the study."""
        return Tqdm(
            total=1,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} pictures|{bar:20}| {desc} [{elapsed}]",
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        super().on_train_start(trainer, pl_module)
        if not self.is_disabled:
            self._watch = _Watch(study_module(pl_module))

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Keep the bar as it is: an epoch has no length here."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Redraw when due."""
        if time.monotonic() - self._drawn >= self.every_seconds:
            self._draw()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last state and close the bar."""
        self._draw()
        super().on_train_end(trainer, pl_module)

    def _draw(self) -> None:
        if self._watch is None:
            return
        self._drawn = time.monotonic()
        seen = self._watch.look()
        bar = self.train_progress_bar
        bar.total = self._watch.module.num_pictures
        bar.n = seen["done"]
        failed = f" · {seen['failed']} failed" if seen["failed"] else ""
        left = seen["left"] or "no estimate before the first picture"
        finished = bar.n == bar.total
        text = f"{seen['products']} products{failed}" + ("" if finished else f" · {left}")
        bar.set_description_str(text, refresh=False)
        bar.refresh()
