"""Lightning callbacks: stopping, logging, pictures, checkpoints, results, signals, progress bar.

Each works in a plain ``lightning.Trainer`` with any logger; none needs the command line.
"""

from eigenexp.callbacks.checkpointing import SolverCheckpoint
from eigenexp.callbacks.convergence_logging import ConvergenceLogging
from eigenexp.callbacks.pictures import DistortionPictures
from eigenexp.callbacks.preemption import GracefulStop
from eigenexp.callbacks.progress_bar import SolverProgressBar
from eigenexp.callbacks.results import ResultFiles
from eigenexp.callbacks.stopping import ConvergenceStopping

__all__ = [
    "ConvergenceLogging",
    "ConvergenceStopping",
    "DistortionPictures",
    "GracefulStop",
    "ResultFiles",
    "SolverCheckpoint",
    "SolverProgressBar",
]
