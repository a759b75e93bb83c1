"""Which run to go on with: the unfinished one of the same settings, or one of a tracking server."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eigenexp.checkpoints.files import Checkpoint, newest_checkpoint, read_checkpoint
from eigenexp.distributed.ranks import is_first_rank
from eigenexp.distributed.rendezvous import decided_by_first
from eigenexp.errors import (
    CheckpointError,
    ConfigError,
    EigenexpError,
    ImageError,
    RunNotFoundError,
)
from eigenexp.experiments.building import build_picture
from eigenexp.experiments.config import override_config
from eigenexp.experiments.noise_schema import GaussianConfig
from eigenexp.experiments.perturbations_schema import EverythingConfig
from eigenexp.experiments.schema import FitConfig, plain_config
from eigenexp.experiments.targets import check_settings_trusted
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.saving import PICTURE_FILE, load_saved_picture
from eigenexp.runs.folder import RunFolder, find_or_fetch, list_runs
from eigenexp.storage.addresses import without_userinfo
from eigenexp.storage.plain import plain
from eigenexp.tracking import Store, download_artifact, download_checkpoint
from eigenexp.tracking.names import check_run_id

__all__ = [
    "Unfinished",
    "claim_unfinished",
    "fetch_run",
    "hold_run",
    "is_before_checkpoints",
    "locate_run",
    "refresh_run",
    "resumed_picture",
    "saved_settings",
    "settings_hash",
]

_IGNORED = ("resume", "root", "threads", "trust", "logger", "callbacks", "experiment", "analysis")
_IGNORED_TRAINER = ("enable_progress_bar", "max_time")
_IGNORED_STUDY = ("checkpoint_seconds", "figures", "retry_failed", "retry_unproven")
_DONE = ("max_steps", "max_products", "converged", "unverified", "floor", "stagnated", "breakdown")


# -- the same command again ------------------------------------------------------------------------


def settings_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what makes two runs the same solve under the same name.

    ``config`` is what a run's record holds (:func:`~eigenexp.experiments.schema.plain_config`).

    Left out is what may change between a run and its continuation: where files go, how much is
    logged and saved, threads, the time limit.
    """
    kept = {key: value for key, value in config.items() if key not in _IGNORED}
    for group, ignored in (("trainer", _IGNORED_TRAINER), ("study", _IGNORED_STUDY)):
        kept[group] = {k: v for k, v in dict(kept.get(group) or {}).items() if k not in ignored}
    usual = {"noise": asdict(GaussianConfig()), "perturbations": asdict(EverythingConfig())}
    # What is usual is left out, as in runs from before there was a choice.
    kept = {key: value for key, value in kept.items() if key not in usual or value != usual[key]}
    text = json.dumps(plain(kept), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Unfinished:
    """A run to go on with.

    Attributes
    ----------
    run
        Held for this process.
    source
        What it goes on from: the file of a checkpoint, a study's plan, or the record of a run
        that ended before it had either.
    checkpoint
        Read from ``source``; ``None`` for a study, and for a run that begins again.
    """

    run: RunFolder
    source: Path
    checkpoint: Checkpoint | None


@contextmanager
def claim_unfinished(settings: FitConfig, root: Path) -> Iterator[Unfinished | None]:
    """Yield the newest unfinished run of these settings, held for the block.

    A run counts as unfinished when it was killed, failed, or ran out of time, and has a checkpoint
    that is whole, or none at all: it begins again then. A study's plan stands for the checkpoint.
    One that another process works on is passed over, so that of two commands that start at once
    each gets a run of its own. ``None`` where there is none.
    """
    wanted = settings_hash(plain_config(settings))
    with ExitStack() as stack:
        found: list[Unfinished] = []

        def claim() -> list[str] | None:
            for run in reversed(list_runs(root)):
                if not _is_unfinished(run, wanted):
                    continue
                with ExitStack() as held:
                    try:
                        held.enter_context(run.hold())
                    except CheckpointError:
                        continue
                    # Its owner may have finished it between the look and the hold.
                    unfinished = _unfinished(run) if _is_unfinished(run, wanted) else None
                    if unfinished is not None:
                        stack.push(held.pop_all())
                        found.append(unfinished)
                        return [run.run_id, str(unfinished.source)]
            return None

        claimed = decided_by_first(claim)
        if claimed is not None and not found:  # by another process
            run, source = RunFolder(root, claimed[0]), Path(claimed[1])
            checkpoint = read_checkpoint(source) if source.suffix == ".ckpt" else None
            found.append(Unfinished(run, source, checkpoint))
        yield found[0] if found else None


def _is_unfinished(run: RunFolder, wanted: str) -> bool:
    try:
        record = run.read_record()
    except CheckpointError:
        return False
    config = record.get("config")
    done = record.get("status") == "FINISHED" and (
        bool(record.get("study")) or record.get("stop_reason") in _DONE
    )
    return not done and isinstance(config, Mapping) and settings_hash(config) == wanted


def _unfinished(run: RunFolder) -> Unfinished | None:
    plan = run.results / "study.json"
    if plan.is_file():
        return Unfinished(run, plan, None)
    if is_before_checkpoints(run):
        return Unfinished(run, run.record_path, None)
    try:
        checkpoint = newest_checkpoint(run.checkpoints)  # warns of each that is damaged
    except CheckpointError:
        return None
    return Unfinished(run, checkpoint.path, checkpoint)


def is_before_checkpoints(run: RunFolder) -> bool:
    """Whether a run on this machine ended before its first checkpoint."""
    return run.record_path.is_file() and not any(run.checkpoints.glob("*.ckpt"))


def hold_run(run: RunFolder) -> AbstractContextManager[None]:
    """Take a run for this process alone (:meth:`RunFolder.hold`); the first rank does for all."""
    return run.hold() if is_first_rank() else nullcontext()


# -- another machine -------------------------------------------------------------------------------


def locate_run(name: str, root: Path, say: Any = print) -> RunFolder:
    """Return a run of this machine, or else the tracking server's, its files fetched under root.

    Raises
    ------
    RunNotFoundError
        When neither has it.
    """

    def fetch() -> RunFolder | None:
        store = Store(root)
        if not store.is_server and not store.database.exists():
            return None
        return fetch_run(store, name, root, say)

    return find_or_fetch(name, root, fetch)


def fetch_run(store: Store, name: str, root: Path, say: Any = print) -> RunFolder:
    """Fetch a run's checkpoint and picture from a tracking store, verified, and record the run.

    Raises
    ------
    RunNotFoundError, CheckpointError, TrackingError
        When the store does not have it, or not whole.
    """
    found = store.find_run(name)
    run = RunFolder(root, check_run_id(found.info.run_id))
    say(f"fetching run {run.run_id} from {store.address}")
    download_checkpoint(store, run.run_id, run.checkpoints)
    try:
        download_artifact(store, run.run_id, f"results/{PICTURE_FILE}", run.results)
    except RunNotFoundError:
        say("the run keeps no picture there; its source is read instead")
    run.write_record(status=str(found.info.status), title=str(found.info.run_name or name))
    return run


def refresh_run(run: RunFolder, say: Any = print) -> Checkpoint:
    """Return the run's newest checkpoint, the tracking server's where it went further elsewhere.

    So is the local store's, where no checkpoint here is whole. A store that does not answer, or
    does not know the run, changes nothing.

    Raises
    ------
    CheckpointError
        When there is no whole one to be had.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            here = newest_checkpoint(run.checkpoints)
        except CheckpointError:
            here = None
    if _fetch_newer(run, -1 if here is None else here.step, say) or here is None:
        return newest_checkpoint(run.checkpoints)
    for warning in told:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return here


def _fetch_newer(run: RunFolder, here: int, say: Any) -> bool:
    """Fetch the store's last checkpoint where it is behind step ``here``; return whether it was."""
    store = Store(run.root)
    if not store.is_server and (here >= 0 or not store.database.exists()):
        return False
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = download_artifact(
                store, run.run_id, "checkpoints/last/metadata.json", Path(scratch)
            )
            step = json.loads(path.read_text())["step"]
        if not isinstance(step, int) or step <= here:
            return False
        why = f"went on elsewhere, to step {step}" if here >= 0 else "has no whole checkpoint here"
        say(f"run {run.run_id} {why}; fetching it from {store.address}")
        download_checkpoint(store, run.run_id, run.checkpoints, "last")
    except RunNotFoundError:
        return False
    except (EigenexpError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        say(f"the tracking server's checkpoint is not used ({reason}); this machine's is")
        return False
    return True


# -- what a checkpoint says ------------------------------------------------------------------------


def saved_settings(
    saved: Mapping[str, Any], overrides: Sequence[str] = (), *, trust: bool = False
) -> FitConfig:
    """Return a saved configuration with changes; of one that is not trusted, only what it may.

    Raises
    ------
    ConfigError
        When it does not fit, would have foreign code run, or names a tracking store other than the
        one in force (``MLFLOW_TRACKING_URI``, or ``logger.tracking_uri=…`` among the overrides),
        which would be sent this machine's credentials.
    """
    settings = override_config(saved, overrides)
    if trust:
        return settings
    check_settings_trusted(settings)
    address = settings.logger.tracking_uri
    chosen = any(override.lstrip("+").startswith("logger.tracking_uri=") for override in overrides)
    if address is None or chosen or not settings.logger.mlflow:
        return settings
    in_force = os.environ.get("MLFLOW_TRACKING_URI", "")
    if without_userinfo(address).rstrip("/") != without_userinfo(in_force).rstrip("/"):
        raise ConfigError(
            f"logger.tracking_uri: expected the store in force ({without_userinfo(in_force)!r}), "
            f"got {without_userinfo(address)!r} from a saved configuration, which would be sent "
            "this machine's credentials; set MLFLOW_TRACKING_URI, give logger.tracking_uri=…, or "
            "pass --trust"
        )
    return settings


def resumed_picture(
    run: RunFolder, settings: FitConfig, saved: Mapping[str, Any], say: Any = print
) -> Picture:
    """Return the run's picture: from its source where that is the same, else the stored one.

    Parameters
    ----------
    run
        The run; ``results/picture.safetensors`` is the stored picture.
    settings
        The present configuration.
    saved
        The checkpoint's metadata, or the run's record; its picture's hash decides.
    say
        Told when the stored picture is used.

    Raises
    ------
    ImageError
        When the source cannot be read and no stored picture fits.
    """
    record = saved.get("picture")
    record = record if isinstance(record, Mapping) else {}
    sha256 = record.get("sha256")
    stored = run.results / PICTURE_FILE
    # In the saved precision: only there the hash can be equal.
    dtype = str(record.get("dtype") or "") or None
    try:
        picture = build_picture(settings, dtype)
    except ImageError as error:
        if not isinstance(sha256, str) or not stored.is_file():
            raise
        picture = load_saved_picture(stored, sha256)
        say(f"the picture's source cannot be read here ({error}); the run's own copy is used")
        return picture
    same_source = (picture.record.get("file_sha256") or 0) == record.get("file_sha256")
    if picture.record["sha256"] != sha256 and same_source and stored.is_file():
        # The same file, resized with another processor's rounding.
        return load_saved_picture(stored, str(sha256))
    return picture
