"""A job in a process of its own, whose command Lightning can repeat for the job's other processes.

``python -m eigenexp.sweeps.worker JOB INDEX`` stops as on a signal, with a checkpoint, when its
standard input closes: a sweep that is killed leaves no job behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from eigenexp.distributed.ranks import is_first_rank
from eigenexp.experiments.config import compose_config, plain_config
from eigenexp.sweeps.job import SweepJob
from eigenexp.sweeps.manifest import SweepFolder

__all__ = ["main"]


def _stop_with_standard_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Run the job that the arguments name; return its exit code, where this is its first process.

    Lightning kills a run of which another process ends with a code that is not 0.
    """
    facts, index = arguments or sys.argv[1:3]
    given = json.loads(facts)
    job = SweepJob(**{**given, "gpus": tuple(given["gpus"])})
    if is_first_rank():
        threading.Thread(target=_stop_with_standard_input, daemon=True).start()
    folder = SweepFolder(Path(job.root), job.sweep_id)
    job.run(int(index), plain_config(compose_config(folder.job(int(index)).overrides)))
    return int(folder.job(int(index)).facts.get("exit_code") or 0) if is_first_rank() else 0


if __name__ == "__main__":
    sys.exit(main())
