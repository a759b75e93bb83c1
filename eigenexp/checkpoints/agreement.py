"""Whether all processes of a run solve the same: compared before the first product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from eigenexp.checkpoints.compatibility import Severity, compare_metadata
from eigenexp.distributed.ranks import gather, in_all_processes
from eigenexp.errors import InputError

__all__ = ["check_same"]

# What to do where processes differ in it.
_ADVICE = {
    "model": "seed the random numbers before it is built (torch.manual_seed), or load its weights",
    "dtype": "give every process the same trainer.precision",
    "settings": "start every process with the same ones",
    "state": "start every process from the same checkpoint",
}


def check_same(
    trainer: L.Trainer, metadata: Mapping[str, Any], state: Mapping[str, Any], advice: str
) -> None:
    """Raise, in all processes, where one works on something else than the first one.

    Parts of different problems would be put together to pairs of none of them.

    Parameters
    ----------
    trainer
        Whose several processes have met.
    metadata
        As in a checkpoint; what would forbid to go on from the first one's is a difference.
    state
        Plain values by name, which are to be equal.

    Raises
    ------
    InputError
        Which process differs, in what, and what to do.
    RankLostError
        When another process is gone; ``advice`` says how to go on.
    """
    everyone = gather(trainer, (dict(metadata), dict(state)), advice)
    first, first_state = everyone[0]
    for rank, (theirs, their_state) in enumerate(everyone):
        differing = [name for name, value in first_state.items() if value != their_state[name]]
        found = compare_metadata(first, theirs)
        differing += [d.field for d in found if d.severity is Severity.HARMFUL]
        # At another picture the output is another one too.
        differing.sort(key="model.output".__eq__)
        if differing:
            hint = _ADVICE.get(
                differing[0].partition(".")[0], "let all of them read the same files"
            )
            raise in_all_processes(
                InputError(
                    f"{differing[0]}: expected the same in all {len(everyone)} processes, got "
                    f"another in process {rank}; {hint}"
                )
            )
