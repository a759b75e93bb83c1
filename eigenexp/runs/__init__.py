"""The folder of runs: each run's files, its overview, the table of all."""

from eigenexp.runs.folder import DIED, OUT_OF_TIME, RunFolder, find_run, list_runs, open_root

__all__ = ["DIED", "OUT_OF_TIME", "RunFolder", "find_run", "list_runs", "open_root"]
