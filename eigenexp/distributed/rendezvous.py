"""What the first process decides for all, before a trainer has brought them together.

Which unfinished run to go on with, and from which checkpoint, must be the same in all processes of
a run, and looking for oneself does not make it so: another job may take that run in between. So the
first process looks, and the others are told: those that Lightning starts by their environment,
those that a scheduler started (``srun``, ``torchrun``) by the store in which they meet anyway.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from eigenexp.distributed.ranks import RankLostError, is_first_rank
from eigenexp.errors import EigenexpError

__all__ = ["decided_by_first", "started_by_scheduler"]

_DECIDED = "EIGENEXP_DECIDED"
_PATIENCE = timedelta(minutes=10)

_count = 0
_store: Any = None


def decided_by_first(decide: Callable[[], Any]) -> Any:
    """Return what ``decide`` gives in the first process, in all of them.

    Processes must ask for the same decisions in the same order.

    Parameters
    ----------
    decide
        Called in the first process only. Returns plain values: what JSON can hold.

    Raises
    ------
    EigenexpError
        What ``decide`` raises, in the first process.
    RankLostError
        In another one, when the first one could not decide, or cannot be reached.
    """
    global _count
    _count += 1
    key = str(_count)
    if not is_first_rank():
        return _told(key)
    value: Any = None
    problem: str | None = "it failed"
    try:
        value = decide()
        problem = None
    except EigenexpError as error:
        problem = " ".join(str(error).split())
        raise
    finally:
        _tell(key, json.dumps({"value": value, "problem": problem}))
    return value


def started_by_scheduler() -> bool:
    """Whether ``srun``, ``torchrun`` or the like started this process as one of several."""
    return _environment() is not None


def _tell(key: str, text: str) -> None:
    """Leave a decision for the processes that are here, and for those to be started."""
    here = json.loads(os.environ.get(_DECIDED, "{}"))
    known = here["decisions"] if here.get("pid") == os.getpid() else {}
    os.environ[_DECIDED] = json.dumps({"pid": os.getpid(), "decisions": {**known, key: text}})
    # Where it cannot be reached, the fit says so.
    with contextlib.suppress(RuntimeError, OSError):
        store = _meeting_place()
        if store is not None:
            store.set(_place(key), text)


def _told(key: str) -> Any:
    here = json.loads(os.environ.get(_DECIDED, "{}"))
    # What a scheduler runs in may have been started by a run of ours: that one's are not meant.
    is_from_parent = here.get("pid") == os.getppid() and _scheduler() is None
    if is_from_parent and key in here["decisions"]:
        text = here["decisions"][key]
    else:
        text = _wait_for(key)
        if _starts_others():
            _tell(key, text)
    told = json.loads(text)
    if told["problem"] is not None:
        raise RankLostError(f"the first process ended: {told['problem']}")
    return told["value"]


def _wait_for(key: str) -> str:
    try:
        store = _meeting_place()
        if store is None:
            raise RankLostError(
                "rank: expected a process started by Lightning, srun or torchrun, got one whose "
                "environment names a rank (LOCAL_RANK, RANK, SLURM_PROCID) and no meeting place; "
                "unset it, or set MASTER_ADDR and MASTER_PORT"
            )
        return cast("bytes", store.get(_place(key))).decode()
    except (RuntimeError, OSError) as error:
        if isinstance(error, RankLostError):
            raise
        text = " ".join(str(error).split())[:200]
        raise RankLostError(
            f"rank: expected the first process to answer within {_PATIENCE}, got {text}"
        ) from error


def _place(key: str) -> str:
    # Processes that torchrun has restarted meet in the same store again.
    return f"eigenexp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{key}"


def _meeting_place() -> Any:
    """Return the store through which torch.distributed will bring processes together, or None.

    It is made here where this comes first: within a process, whoever asks for the same address
    later gets the same server.
    """
    global _store
    if _store is None:
        environment = _environment()
        if environment is None:
            return None
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        _store = TCPStore(
            environment.main_address,
            environment.main_port,
            is_master=is_first_rank() and not agents,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=_PATIENCE,
        )
    return _store


def _environment() -> ClusterEnvironment | None:
    """Return the environment of whoever started several processes; ``None`` where nobody did."""
    scheduler = _scheduler()
    if scheduler is not None:
        return scheduler if scheduler.world_size() > 1 else None
    return LightningEnvironment() if _is_one_of_nodes() else None


def _scheduler() -> ClusterEnvironment | None:
    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment):
        if kind.detect():
            environment: ClusterEnvironment = kind()
            return environment
    return None


def _is_one_of_nodes() -> bool:
    """Whether a person started one process a node, each of which starts its own."""
    return {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys()


def _starts_others() -> bool:
    return _is_one_of_nodes() and "LOCAL_RANK" not in os.environ
