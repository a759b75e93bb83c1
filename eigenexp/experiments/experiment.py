"""One run from configuration to result: fit, resume, and what is said at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from eigenexp.callbacks import GracefulStop
from eigenexp.checkpoints.files import find_checkpoint, load_metadata
from eigenexp.distributed.ranks import first_rank_only, is_first_rank
from eigenexp.distributed.rendezvous import decided_by_first
from eigenexp.errors import CheckpointError, ConfigError
from eigenexp.experiments.building import build_model, build_picture, check_trusted
from eigenexp.experiments.config import override_config, plain_config
from eigenexp.experiments.picture import RunResult, Start, solve_picture
from eigenexp.experiments.resuming import (
    check_resolved,
    claim_unfinished,
    hold_run,
    locate_run,
    refresh_run,
    resumed_picture,
)
from eigenexp.experiments.session import set_threads
from eigenexp.experiments.study import StudyResult, fit_study, is_study, study_summary
from eigenexp.runs.folder import OUT_OF_TIME, RunFolder, open_root
from eigenexp.spectrum import StopReason

__all__ = ["RunResult", "fit", "resume", "summary"]


def fit(
    config: Any,
    *,
    run: RunFolder | None = None,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = print,
) -> RunResult | StudyResult:
    """Run the configured solve, tracked and resumable.

    With ``resume: auto`` it goes on with the newest unfinished run of the same settings.

    Parameters
    ----------
    config
        From :func:`~eigenexp.experiments.config.compose_config`, or a plain mapping of its keys.
    run, checkpoint
        Go on with this run, from this checkpoint or, without one, from its beginning.
    say
        Receives the lines a person reads.

    Raises
    ------
    EigenexpError
        One line that says what to change; a run already begun is marked FAILED.
    """
    say = first_rank_only(say)
    settings = dict(config) if isinstance(config, dict) else plain_config(config)
    root = open_root(settings["root"])
    settings["root"] = str(root)
    _check_names(settings)
    choice = settings.get("resume", "never")
    if choice not in ("never", "auto"):
        raise ConfigError(f"resume: expected never or auto, got {choice!r}")
    if run is not None:
        with hold_run(run):
            return _go_on(settings, root, run, checkpoint, say)
    if choice == "never":
        return _begin(settings, root, say)
    with claim_unfinished(settings, root) as claimed:
        if claimed is None:
            say("no unfinished run of these settings; a new one begins")
            return _begin(settings, root, say)
        found, last = claimed
        say(f"going on with the unfinished run {found.run_id}, from {last}")
        return _go_on(settings, root, found, last, say)


def _begin(
    settings: dict[str, Any], root: Path, say: Callable[[str], None]
) -> RunResult | StudyResult:
    if is_study(settings):
        return _solve_study(settings, root, None, say=say)
    return solve_picture(settings, root, say=say)


def _go_on(
    settings: dict[str, Any],
    root: Path,
    run: RunFolder,
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> RunResult | StudyResult:
    """Go on with a run that the caller holds, by settings that are trusted."""
    if is_study(settings):
        return _solve_study(settings, root, run, say=say)
    if checkpoint is None:
        picture = build_picture(settings)
    else:
        picture = resumed_picture(run, settings, load_metadata(checkpoint), say)
    return solve_picture(settings, root, Start(run, checkpoint, picture), say=say)


def resume(
    name: str,
    overrides: Sequence[str] = (),
    *,
    root: str | Path = "mlruns",
    force: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = print,
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
        Build ``_target_`` of any package from the saved configuration.

    Raises
    ------
    EigenexpError
        When there is no such run or checkpoint, or it does not fit.
    """
    given = Path(name)
    say = first_rank_only(say)
    with ExitStack() as stack:

        def locate() -> list[str | None]:
            found = locate_run(name, Path(root).absolute(), say)
            stack.enter_context(found.hold())
            last = None if found.is_study else _last_checkpoint(found, given, say)
            return [str(found.root), found.run_id, None if last is None else str(last)]

        folder, run_id, checkpoint = decided_by_first(locate)
        run = RunFolder(Path(folder), run_id)
        if checkpoint is None:
            return _resume_study(run, overrides, force, trust, say)
        return _resume_picture(run, Path(checkpoint), overrides, force, trust, say)


def _last_checkpoint(run: RunFolder, given: Path, say: Callable[[str], None]) -> Path:
    """Return the checkpoint that a run goes on from: the one named, or the newest there is."""
    if given.is_file():
        return find_checkpoint(given)
    refresh_run(run, say)
    return find_checkpoint(run.checkpoints)


def _resume_picture(
    run: RunFolder,
    checkpoint: Path,
    overrides: Sequence[str],
    force: bool,
    trust: bool,
    say: Callable[[str], None],
) -> RunResult:
    saved = load_metadata(checkpoint)
    if not isinstance(saved.get("config"), Mapping):
        raise CheckpointError(
            f"{checkpoint}: expected the run's configuration in the checkpoint, got none; "
            "continue it from your script with trainer.fit(module, ckpt_path=…)"
        )
    # The folder may have moved since; a changed root would start another store.
    settings = _settings_of({**saved["config"], "root": str(run.root)}, overrides, trust)
    changed = {override.partition("=")[0] for override in overrides}
    new_picture = any(key == "image" or key.startswith("image.") for key in changed)
    picture = build_picture(settings) if new_picture else resumed_picture(run, settings, saved, say)
    intended = ("dtype",) if "trainer.precision" in changed else ()
    say(f"resuming from {checkpoint}")
    start = Start(run, checkpoint, picture, force, trust, intended)
    return solve_picture(settings, open_root(run.root), start, say=say)


def _resume_study(
    run: RunFolder,
    overrides: Sequence[str],
    force: bool,
    trust: bool,
    say: Callable[[str], None],
) -> StudyResult:
    saved = {**run.read_record()["config"], "root": str(run.root)}
    settings = _settings_of(saved, overrides, trust)
    say(f"resuming {run.results}")
    return _solve_study(settings, open_root(run.root), run, force=force, trust=trust, say=say)


def _settings_of(saved: Mapping[str, Any], overrides: Sequence[str], trust: bool) -> dict[str, Any]:
    """Return a saved configuration with changes; of one that is not trusted, only what it may."""
    if not trust:
        check_resolved(saved)
    settings = plain_config(override_config(saved, overrides))
    if not trust:
        check_trusted(settings["model"])
    return settings


def _solve_study(
    settings: dict[str, Any],
    root: Path,
    run: RunFolder | None,
    *,
    force: bool = False,
    trust: bool = True,
    say: Callable[[str], None],
) -> StudyResult:
    """Solve the pictures of a new study, or the unfinished ones of one that the caller holds."""
    set_threads(settings["threads"])
    model = build_model(settings["model"], trust=trust)
    stop = GracefulStop(every_n_steps=1)
    with stop.listening():
        return fit_study(settings, model, root=root, stop=stop, run=run, force=force, say=say)


def _check_names(settings: Mapping[str, Any]) -> None:
    """Refuse what no store takes, before a run is begun."""
    if not str(settings.get("experiment_name", "eigenexp")).strip():
        raise ConfigError("experiment_name: expected a name, got an empty one; leave it out")


# -- what a person reads ---------------------------------------------------------------------------


def summary(result: RunResult | StudyResult) -> list[str]:
    """Return the closing lines of a run."""
    if not is_first_rank():
        return []
    if isinstance(result, StudyResult):
        return study_summary(result)
    lines = ["", str(result.spectrum), ""]
    if "distortions.png" in result.paths:
        lines.append(f"picture:   {result.paths['distortions.png']}")
        lines.append(f"results:   {result.paths['distortions.png'].parent}")
    if result.status == "KILLED":
        cause = "at trainer.max_time" if result.exit_code == OUT_OF_TIME else "by a signal"
        lines.append(f"stopped {cause}; go on with: eigenexp resume {result.run_id}")
    elif not (len(result.spectrum) and bool(result.spectrum.converged.all())):
        out_of_steps = result.spectrum.stop_reason is StopReason.RUNNING
        setting = "trainer.max_steps=…" if out_of_steps else "…"
        lines.append(
            f"not every pair is proven; go on with: eigenexp resume {result.run_id} {setting}"
        )
    lines.append("dashboard: eigenexp ui")
    return lines
