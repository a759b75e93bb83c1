"""What a job of a sweep may use: processes, threads, a GPU of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from eigenexp.errors import EigenexpError
from eigenexp.experiments.schema import FitConfig

__all__ = ["granted_threads", "num_processes", "take_gpu", "visible_gpus"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"

# Held until the process ends.
_taken: FileLock | None = None


def num_processes(settings: FitConfig) -> int:
    """Return how many processes a job's trainer takes, on all its nodes."""
    if settings.trainer.devices in (1, "1") and settings.trainer.num_nodes == 1:
        return 1
    from eigenexp.experiments.building import build_trainer

    try:
        trainer = build_trainer(settings, [], [], checkpointing=False)
    except EigenexpError:
        return 1  # it cannot be built: the job says so
    return int(trainer.num_devices * trainer.num_nodes)


def granted_threads() -> int | None:
    """Return the cores that SLURM gave each task, if it did."""
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(granted) if granted.isdigit() and int(granted) > 0 else None


def visible_gpus() -> tuple[str, ...]:
    """Return the names that CUDA knows this machine's GPUs by, as far as they may be used."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    import torch

    return tuple(str(i) for i in range(torch.cuda.device_count()))


def take_gpu(names: Sequence[str]) -> str:
    """Let this process see one of the GPUs: one that no other sweep's process here has taken.

    Where all are taken they are shared. It keeps the one it has; must be called before CUDA is
    first used.
    """
    global _taken
    if _taken is not None:
        return os.environ[_VISIBLE]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "eigenexp" / "gpus" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    locks = [FileLock(folder / f"{name}.lock") for name in names]
    chosen = os.getpid() % len(names)
    for place, lock in enumerate(locks):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        chosen = place
        break
    _taken = locks[chosen]
    os.environ[_VISIBLE] = names[chosen]
    return names[chosen]
