"""Jobs that share a process leave each other nothing: each begins as in a process of its own."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["as_if_alone"]

# What Lightning and the job's own trainer arguments put there, to be read by a later run.
_LEFT_BEHIND = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Put back, after the block, what a job may set for its whole process.

    Threads, the random states, torch's default dtype, its deterministic and its precision modes
    (``trainer.deterministic``, ``trainer.benchmark``), the environment that Lightning leaves, and
    where modules are looked for.
    """
    import numpy as np
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    matmul = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    anomalies = torch.is_anomaly_enabled()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    environment = {name: os.environ.get(name) for name in _LEFT_BEHIND}
    paths = list(sys.path)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.set_float32_matmul_precision(matmul)
        cudnn.benchmark, cudnn.deterministic = flags
        torch.autograd.set_detect_anomaly(anomalies)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        sys.path[:] = paths
