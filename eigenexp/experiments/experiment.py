"""One run from configuration to result: fit, and resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from eigenexp.callbacks import GracefulStop
from eigenexp.checkpoints.files import Checkpoint, newest_checkpoint, read_checkpoint
from eigenexp.distributed.ranks import first_rank_only
from eigenexp.distributed.rendezvous import decided_by_first
from eigenexp.errors import CheckpointError, ConfigError
from eigenexp.experiments.building import build_picture
from eigenexp.experiments.config import checked, override_config
from eigenexp.experiments.picture import RunResult, Start, solve_picture
from eigenexp.experiments.resuming import (
    claim_unfinished,
    hold_run,
    is_before_checkpoints,
    locate_run,
    refresh_run,
    resumed_picture,
    saved_settings,
)
from eigenexp.experiments.schema import FitConfig
from eigenexp.experiments.session import set_threads, without_credentials
from eigenexp.experiments.study import StudyResult, fit_study, is_study
from eigenexp.experiments.targets import build_model
from eigenexp.pictures.picture import Picture
from eigenexp.runs.folder import RunFolder, open_root

__all__ = ["RunResult", "fit", "resume"]

Say = Callable[[str], None]


def fit(
    config: FitConfig | DictConfig | Mapping[str, Any],
    *,
    run: RunFolder | None = None,
    say: Say = print,
) -> RunResult | StudyResult:
    """Run the configured solve, tracked and resumable.

    With ``resume: auto`` it goes on with the newest unfinished run of the same settings.

    Parameters
    ----------
    config
        From :func:`~eigenexp.experiments.config.compose_config`, or a plain mapping of its keys.
    run
        Go on with this run, from its last checkpoint or, without one, from its beginning.
    say
        Receives the lines a person reads.

    Raises
    ------
    EigenexpError
        One line that says what to change; a run already begun is marked FAILED.
    """
    say = first_rank_only(say)
    settings = _ready(config)
    root = Path(settings.root)
    if run is not None:
        with hold_run(run):
            return _go_on(settings, run, _newest(run), say)
    if settings.resume == "never":
        return _begin(settings, root, say)
    with claim_unfinished(settings, root) as claimed:
        if claimed is None:
            say("no unfinished run of these settings; a new one begins")
            return _begin(settings, root, say)
        where = "its beginning" if claimed.source == claimed.run.record_path else claimed.source
        say(f"going on with the unfinished run {claimed.run.run_id}, from {where}")
        return _go_on(settings, claimed.run, claimed.checkpoint, say)


def _ready(config: FitConfig | DictConfig | Mapping[str, Any]) -> FitConfig:
    """Return settings that a run can begin with; refuse what no store takes."""
    if isinstance(config, DictConfig):
        config = checked(config)
    elif not isinstance(config, FitConfig):
        config = override_config(config, [])
    if not config.experiment_name.strip():
        raise ConfigError("experiment_name: expected a name, got an empty one; leave it out")
    if config.resume not in ("never", "auto"):
        raise ConfigError(f"resume: expected never or auto, got {config.resume!r}")
    return without_credentials(replace(config, root=str(open_root(config.root))))


def _begin(settings: FitConfig, root: Path, say: Say) -> RunResult | StudyResult:
    if is_study(settings):
        return _solve_study(settings, root, None, say=say)
    return solve_picture(settings, root, say=say)


def _go_on(
    settings: FitConfig, run: RunFolder, checkpoint: Checkpoint | None, say: Say
) -> RunResult | StudyResult:
    """Go on with a run that the caller holds, by settings that are trusted."""
    root = Path(settings.root)
    if is_study(settings):
        return _solve_study(settings, root, run, say=say)
    saved = _record(run) if checkpoint is None else checkpoint.metadata
    picture = resumed_picture(run, settings, saved, say)
    if checkpoint is None and not _is_the_same(picture, saved):
        say(f"run {run.run_id} began with another picture; a new one begins")
        return solve_picture(settings, root, say=say)
    return solve_picture(settings, root, Start(run, checkpoint, picture), say=say)


def _is_the_same(picture: Picture, saved: Mapping[str, Any]) -> bool:
    """Whether a picture is the one a run's record tells of, where it tells of one."""
    began = saved.get("picture")
    known = began.get("sha256") if isinstance(began, Mapping) else None
    return known is None or known == picture.record["sha256"]


def _record(run: RunFolder) -> Mapping[str, Any]:
    try:
        return run.read_record()
    except CheckpointError:  # killed before it had one
        return {}


def _newest(run: RunFolder) -> Checkpoint | None:
    try:
        return newest_checkpoint(run.checkpoints)
    except CheckpointError:  # killed before its first
        return None


def resume(
    name: str,
    overrides: Sequence[str] = (),
    *,
    root: str | Path = "mlruns",
    force: bool = False,
    trust: bool = False,
    say: Say = print,
) -> RunResult | StudyResult:
    """Continue a run in its own place, ending as it would have without the break.

    Parameters
    ----------
    name
        Run id, the start of one, ``last``, or a path into a run's folder. A run that is not on this
        machine is fetched from the tracking server, checkpoint and picture verified by their hash.
    overrides
        ``key=value`` changes, for instance ``solver.tol=1e-6`` or ``trainer.max_steps=9000``.
    root
        Folder of the runs.
    force
        Go on although model or picture differ from the saved ones.
    trust
        Build ``_target_`` of any package from the saved configuration, and send to the tracking
        store that it names.

    Raises
    ------
    EigenexpError
        When there is no such run or checkpoint, or it does not fit.
    """
    given = Path(name)
    say = first_rank_only(say)
    opened: list[Checkpoint] = []
    with ExitStack() as stack:

        def locate() -> list[str | None]:
            found = locate_run(name, Path(root).absolute(), say)
            stack.enter_context(found.hold())
            if given.is_file():
                opened.append(read_checkpoint(given))
            elif not found.is_study and not is_before_checkpoints(found):
                opened.append(refresh_run(found, say))
            return [str(found.root), found.run_id, str(opened[0].path) if opened else None]

        folder, run_id, path = decided_by_first(locate)
        run = RunFolder(Path(folder), run_id)
        if path is None and run.is_study:
            return _resume_study(run, overrides, force, trust, say)
        checkpoint = opened[0] if opened else read_checkpoint(path) if path else None
        return _resume_picture(run, checkpoint, overrides, force, trust, say)


def _resume_picture(
    run: RunFolder,
    checkpoint: Checkpoint | None,
    overrides: Sequence[str],
    force: bool,
    trust: bool,
    say: Say,
) -> RunResult:
    saved = run.read_record() if checkpoint is None else checkpoint.metadata
    if not isinstance(saved.get("config"), Mapping):
        raise CheckpointError(
            f"{run.record_path if checkpoint is None else checkpoint.path}: expected the run's "
            "configuration, got none; continue it from your script with "
            "trainer.fit(module, ckpt_path=…)"
        )
    # The folder may have moved since; a changed root would start another store.
    config = {**saved["config"], "root": str(run.root)}
    settings = without_credentials(saved_settings(config, overrides, trust=trust))
    changed = {override.partition("=")[0] for override in overrides}
    new_picture = any(key == "image" or key.startswith("image.") for key in changed)
    picture = build_picture(settings) if new_picture else resumed_picture(run, settings, saved, say)
    intended = ("dtype",) if "trainer.precision" in changed else ()
    if checkpoint is not None:
        say(f"resuming from {checkpoint.path}")
    elif force or new_picture or _is_the_same(picture, saved):
        say(f"run {run.run_id} has no checkpoint yet: it begins again")
    else:
        raise CheckpointError(
            f"run {run.run_id}: expected the picture that it began with, got another; begin a new "
            "run, or pass --force"
        )
    start = Start(run, checkpoint, picture, force, trust, intended)
    return solve_picture(settings, open_root(run.root), start, say=say)


def _resume_study(
    run: RunFolder, overrides: Sequence[str], force: bool, trust: bool, say: Say
) -> StudyResult:
    saved = run.read_record().get("config")
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{run.record_path}: expected the study's settings, got none")
    config = {**saved, "root": str(run.root)}
    settings = without_credentials(saved_settings(config, overrides, trust=trust))
    say(f"resuming {run.results}")
    return _solve_study(settings, open_root(run.root), run, force=force, trust=trust, say=say)


def _solve_study(
    settings: FitConfig,
    root: Path,
    run: RunFolder | None,
    *,
    force: bool = False,
    trust: bool = True,
    say: Say,
) -> StudyResult:
    """Solve the pictures of a new study, or the unfinished ones of one that the caller holds."""
    set_threads(settings.threads)
    model = build_model(settings.model, trust=trust)
    stop = GracefulStop(every_n_steps=1)
    with stop.listening():
        return fit_study(settings, model, root=root, stop=stop, run=run, force=force, say=say)
