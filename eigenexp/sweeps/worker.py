"""A job in a process of its own, whose command Lightning can repeat for the job's other processes.

It stops as on a signal, with a checkpoint, when the sweep closes its standard input or dies: a
sweep that is killed leaves no job behind.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from eigenexp.distributed.ranks import is_first_rank
from eigenexp.experiments.config import compose_config
from eigenexp.storage.processes import module_arguments, when_parent_closes
from eigenexp.sweeps.job import SweepJob
from eigenexp.sweeps.manifest import SweepFolder

__all__ = ["main"]


def main() -> int:
    """Run the job that the sweep names; return its exit code, where this is its first process.

    Lightning kills a run of which another process ends with a code that is not 0.
    """
    given = module_arguments()
    facts, index = given["job"], int(given["index"])
    job = SweepJob(**{**facts, "gpus": tuple(facts["gpus"])})
    if is_first_rank():
        when_parent_closes(partial(os.kill, os.getpid(), signal.SIGTERM))
    folder = SweepFolder(Path(job.root), job.sweep_id)
    job.run(index, compose_config(folder.job(index).overrides))
    return int(folder.job(index).facts.get("exit_code") or 0) if is_first_rank() else 0


if __name__ == "__main__":
    sys.exit(main())
