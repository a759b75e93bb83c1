"""``eigenexp stimuli``: from runs to a folder of stimuli, told line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from eigenexp.console import say
from eigenexp.experiments.stimuli import stimulus_sources
from eigenexp.experiments.summary import NOT_PROVEN
from eigenexp.stimuli import LeftOut, Made, Settings, make

__all__ = ["export_stimuli"]

_MOST_TOLD = 24


def export_stimuli(
    names: Sequence[str],
    settings: Settings,
    output: str | None,
    *,
    root: str,
    trust: bool,
    quiet: bool,
) -> int:
    """Export, say what came of it, and return the exit code.

    What was left out is told on standard error, also where ``quiet`` leaves out all else.
    """
    sources, lost = stimulus_sources(names, root, trust=trust)
    folder = Path(output or f"stimuli-{sources[0].run_id[:8] or 'spectrum'}")
    made = make(sources, folder, settings, progress=not quiet)
    left_out = [*lost, *made.left_out]
    _tell(left_out, partial(say, file=sys.stderr))
    if not quiet:
        say(_summary(made, len(left_out)))
        for name, path in made.packages.items():
            say(f"{name + ':':<10} {path.absolute()}")
        say(f"{'manifest:':<10} {made.folder.absolute() / 'manifest.json'} (and .csv)")
    unproven = any("expected a converged pair" in one.why for one in made.left_out)
    return NOT_PROVEN if unproven or lost else 0


def _tell(left_out: Sequence[LeftOut], tell: Callable[[str], None]) -> None:
    for one in left_out[:_MOST_TOLD]:
        tell(f"left out {one}")
    if len(left_out) > _MOST_TOLD:
        tell(f"… and {len(left_out) - _MOST_TOLD} more")


def _summary(made: Made, left_out: int) -> str:
    stimuli = made.manifest.stimuli
    distortions = len({one.distortion for one in stimuli})
    kept = f", {made.num_kept} of them there before" if made.num_kept else ""
    return (
        f"{len(stimuli)} stimuli of {distortions} distortions{kept}; {left_out} left out; "
        f"manifest {made.manifest.id}"
    )
