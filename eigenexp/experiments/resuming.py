"""Which run to go on with: the unfinished one of the same settings, or one of a tracking server."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from eigenexp.checkpoints.files import CheckpointWarning, find_checkpoint, load_metadata
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
from eigenexp.pictures.picture import Picture
from eigenexp.pictures.saving import PICTURE_FILE, load_saved_picture
from eigenexp.runs.folder import RunFolder, find_or_fetch, list_runs
from eigenexp.storage.plain import plain
from eigenexp.tracking import Store, download_artifact, download_checkpoint
from eigenexp.tracking.names import check_run_id

__all__ = [
    "check_resolved",
    "claim_unfinished",
    "fetch_run",
    "hold_run",
    "locate_run",
    "refresh_run",
    "resumed_picture",
    "settings_hash",
]

_IGNORED = ("resume", "root", "threads", "trust", "logger", "callbacks", "experiment")
_IGNORED_TRAINER = ("enable_progress_bar", "max_time")
_IGNORED_STUDY = ("checkpoint_seconds", "figures", "retry_failed", "retry_unproven")
_DONE = ("max_steps", "max_products", "converged", "unverified", "floor", "stagnated", "breakdown")


# -- the same command again ------------------------------------------------------------------------


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what makes two runs the same solve under the same name.

    Left out is what may change between a run and its continuation: where files go, how much is
    logged and saved, threads, the time limit.
    """
    kept = {key: value for key, value in settings.items() if key not in _IGNORED}
    for group, ignored in (("trainer", _IGNORED_TRAINER), ("study", _IGNORED_STUDY)):
        kept[group] = {k: v for k, v in dict(kept.get(group) or {}).items() if k not in ignored}
    text = json.dumps(plain(kept), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def claim_unfinished(
    settings: Mapping[str, Any], root: Path
) -> Iterator[tuple[RunFolder, Path] | None]:
    """Yield the newest unfinished run of these settings and its checkpoint, held for the block.

    A run counts as unfinished when it was killed, failed, or ran out of time, and has a checkpoint
    that is whole; a study, when it has its plan, which then stands for the checkpoint. One that
    another process works on is passed over, so that of two commands that start at once each gets a
    run of its own. ``None`` where there is none.
    """
    wanted = settings_hash(settings)
    with ExitStack() as stack:

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
                    checkpoint = _newest(run) if _is_unfinished(run, wanted) else None
                    if checkpoint is not None:
                        stack.push(held.pop_all())
                        return [run.run_id, str(checkpoint)]
            return None

        claimed = decided_by_first(claim)
        yield None if claimed is None else (RunFolder(root, claimed[0]), Path(claimed[1]))


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


def _newest(run: RunFolder) -> Path | None:
    plan = run.results / "study.json"
    if plan.is_file():
        return plan
    try:
        return find_checkpoint(run.checkpoints)  # warns of each that is damaged
    except CheckpointError:
        return None


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


def refresh_run(run: RunFolder, say: Any = print) -> None:
    """Fetch the tracking server's checkpoint where the run went further on another machine.

    So is the local store's, where no checkpoint here is whole. A store that does not answer, or
    does not know the run, changes nothing.
    """
    store = Store(run.root)
    here = _step(run)
    if not store.is_server and (here >= 0 or not store.database.exists()):
        return
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = download_artifact(
                store, run.run_id, "checkpoints/last/metadata.json", Path(scratch)
            )
            step = json.loads(path.read_text())["step"]
        if not isinstance(step, int) or step <= here:
            return
        why = f"went on elsewhere, to step {step}" if here >= 0 else "has no whole checkpoint here"
        say(f"run {run.run_id} {why}; fetching it from {store.address}")
        download_checkpoint(store, run.run_id, run.checkpoints, "last")
    except RunNotFoundError:
        return
    except (EigenexpError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        say(f"the tracking server's checkpoint is not used ({reason}); this machine's is")


def _step(run: RunFolder) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # told when it is loaded
            return int(load_metadata(find_checkpoint(run.checkpoints)).get("step") or 0)
    except CheckpointError:
        return -1


# -- what a checkpoint says ------------------------------------------------------------------------


def check_resolved(value: Any, path: str = "") -> None:
    """Refuse interpolations in a saved configuration: it was saved resolved.

    ``${oc.env:SECRET}`` of a hostile file would read this machine's secrets into the run.

    Raises
    ------
    ConfigError
        Naming the key.
    """
    if isinstance(value, str) and "${" in value:
        raise ConfigError(
            f"{path}: expected plain values in a saved configuration, got the interpolation "
            f"{value[:60]!r}; set it yourself: {path}=…"
        )
    if isinstance(value, Mapping):
        for key, entry in value.items():
            check_resolved(str(key), path or "configuration")
            check_resolved(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            check_resolved(entry, path)


def resumed_picture(
    run: RunFolder, settings: Mapping[str, Any], saved: Mapping[str, Any], say: Any = print
) -> Picture:
    """Return the run's picture: from its source where that is the same, else the stored one.

    Parameters
    ----------
    run
        The run; ``results/picture.safetensors`` is the stored picture.
    settings
        The present configuration.
    saved
        The checkpoint's metadata; its picture's hash decides.
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
