"""Sweeps: one job a combination of settings, by any Hydra launcher, on disk until all is done.

``manifest.json`` under ``<root>/sweeps/<id>/`` holds every job from the start, ``jobs/`` what came
of each; both are written atomically, so a sweep survives the death of every process in it.
"""

from eigenexp.sweeps.launching import retry, show, sweep
from eigenexp.sweeps.manifest import Job, SweepFolder, find_sweep, list_sweeps

__all__ = ["Job", "SweepFolder", "find_sweep", "list_sweeps", "retry", "show", "sweep"]
