"""One run from configuration to result: fit, resume, and what is said at the end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from eigenexp.building import (
    build_callbacks,
    build_loggers,
    build_model,
    build_module,
    build_picture,
    build_trainer,
    check_trusted,
)
from eigenexp.callbacks import GracefulStop, ResultFiles
from eigenexp.callbacks.sending import send_description, send_settings
from eigenexp.checkpoints import find_checkpoint, load_metadata
from eigenexp.config import override_config, plain_config, shown_settings
from eigenexp.errors import CheckpointError, ConfigError, TrackingError
from eigenexp.fitting import fit_to_the_end, name_run
from eigenexp.images import Picture
from eigenexp.lightning_module import EigendistortionModule
from eigenexp.overview import failed_description, model_name, problem_row, result_row
from eigenexp.provenance import plain
from eigenexp.ranks import is_first_rank
from eigenexp.resuming import (
    check_resolved,
    claim_unfinished,
    hold_run,
    locate_run,
    refresh_run,
    resumed_picture,
)
from eigenexp.runs import OUT_OF_TIME, RunFolder, open_root
from eigenexp.spectrum import Spectrum, StopReason
from eigenexp.study.running import StudyResult, fit_study, is_study, study_summary
from eigenexp.tracking import MLflowLogger

__all__ = ["RunResult", "fit", "resume", "summary"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes
    ----------
    run_id
        Names the run in MLflow, TensorBoard and under ``<root>/checkpoints``.
    status
        ``FINISHED``, ``KILLED`` (a signal, or ``max_time``) or ``FAILED``, as MLflow says it.
    exit_code
        0, 128 + the signal's number, or 124 at ``max_time``, as ``timeout`` has it.
    spectrum
        The pairs with their certificates.
    paths
        The result's files by file name.
    """

    run_id: str
    status: str
    exit_code: int
    spectrum: Spectrum
    paths: Mapping[str, Path]


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
        From :func:`eigenexp.config.compose_config`, or a plain mapping of the same keys.
    run, checkpoint
        Go on with this run, from this checkpoint or, without one, from its beginning.
    say
        Receives the lines a person reads.

    Raises
    ------
    EigenexpError
        One line that says what to change; a run already begun is marked FAILED.
    """
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
    return _solve(settings, root, say=say)


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
    return _solve(settings, root, Start(run, checkpoint, picture), say=say)


@dataclass(frozen=True)
class Start:
    """What a resumed run begins with.

    ``force`` also where model or picture differ; ``trust`` any class the configuration names;
    ``intended`` fields of the checkpoint's metadata that were changed on purpose.
    """

    run: RunFolder
    checkpoint: Path | None
    picture: Picture
    force: bool = False
    trust: bool = True
    intended: tuple[str, ...] = ()


def _solve(
    settings: dict[str, Any],
    root: Path,
    start: Start | None = None,
    *,
    say: Callable[[str], None] = print,
) -> RunResult:
    """Solve in a new run, or go on with one that the caller holds."""
    _set_threads(settings["threads"])
    picture = build_picture(settings) if start is None else start.picture
    model = build_model(settings["model"], trust=start is None or start.trust)
    module = build_module(settings, model, picture)
    run = checkpoint = None
    if start is not None:
        run, checkpoint = start.run, start.checkpoint
        module.force_resume = start.force
        module.intended_changes += start.intended

    title = f"{model_name(settings['model'])} at {picture.name}"
    stop = GracefulStop()
    with stop.listening():
        mlflow = _mlflow_logger(settings, root, run, title)
        folder = RunFolder(root, name_run(run, mlflow))
        with nullcontext() if start is not None else hold_run(folder):
            return _run(folder, settings, module, picture, mlflow, checkpoint, title, stop, say)


def _run(
    folder: RunFolder,
    settings: dict[str, Any],
    module: EigendistortionModule,
    picture: Picture,
    mlflow: MLflowLogger | None,
    checkpoint: Path | None,
    title: str,
    stop: GracefulStop,
    say: Callable[[str], None],
) -> RunResult:
    """Run one solve in its folder and mark how it ended."""
    run_id, root = folder.run_id, folder.root
    is_first = is_first_rank()
    module.run_metadata["run_id"] = run_id
    results = ResultFiles(folder.results, title=title)
    loggers: list[Any] = []

    def record_start() -> None:
        if is_first:
            row = {**problem_row(settings), "picture": picture.name}
            facts = {"config": settings, "picture": picture.record, "title": title, "row": row}
            folder.write_record(status="RUNNING", **facts)
        for logger in loggers:
            send_settings(logger, shown_settings(settings, picture.name))
        if mlflow is not None:
            mlflow.log_tags({"picture_sha256": picture.record["sha256"]})

    begin = _Beginning(record_start)
    trainer: Any = None
    status, exit_code = "FAILED", 1
    try:
        loggers += build_loggers(settings, run_id, mlflow)
        if checkpoint is None:
            begin.now()
        callbacks = [begin, *build_callbacks(settings, folder.checkpoints, results, stop)]
        trainer = build_trainer(settings, loggers, callbacks)
        if is_first:
            say(f"run {run_id}: {title}, {tuple(picture.tensor.shape[1:])}, files under {root}")
        exit_code = fit_to_the_end(
            trainer,
            module,
            stop,
            mlflow,
            lambda: module.solver.stop_reason is StopReason.RUNNING,
            checkpoint,
        )
        status = "KILLED" if exit_code else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if begin.done or checkpoint is None:
            reason = _stop_reason(trainer, module, status, exit_code)
            facts = _facts(settings, picture, module, status)
            error = sys.exc_info()[1] if status == "FAILED" else None
            problem = None if error is None else " ".join(str(error).split())[:500]
            try:
                if is_first:
                    folder.write_record(status=status, stop_reason=reason, row=facts, error=problem)
            except TrackingError as full:  # what ended the run is more worth telling
                log.warning("%s", full)
            if mlflow is not None:
                mlflow.log_tags({"stop_reason": reason, **_drift_tags(module)})
                if error is not None:
                    text = failed_description(title, error)
                    send_description(mlflow, text, {"error": problem or ""}, 0)
                mlflow.set_status(status)
                mlflow.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table below says it, pair by pair
        spectrum = module.spectrum()
    # Lightning kills a run of which a process ends with another code than 0: the first one tells.
    code = exit_code if is_first else 0
    # A resumed run that was over already writes nothing.
    paths = results.paths or {path.name: path for path in sorted(folder.results.glob("*.*"))}
    return RunResult(run_id, status, code, spectrum, paths)


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
    run = locate_run(name, Path(root).absolute(), say)
    if run.is_study:
        return _resume_study(run, overrides, force, trust, say)
    given = Path(name)
    with hold_run(run):
        if not given.is_file():
            refresh_run(run, say)
        checkpoint = find_checkpoint(given if given.is_file() else run.checkpoints)
        saved = load_metadata(checkpoint)
        if not isinstance(saved.get("config"), Mapping):
            raise CheckpointError(
                f"{checkpoint}: expected the run's configuration in the checkpoint, got none; "
                "continue it from your script with trainer.fit(module, ckpt_path=…)"
            )
        if not trust:
            check_resolved(saved["config"])
        # The folder may have moved since; a changed root would start another store.
        merged = override_config({**saved["config"], "root": str(run.root)}, overrides)
        settings = plain_config(merged)
        if not trust:
            check_trusted(settings["model"])
        changed = {override.partition("=")[0] for override in overrides}
        new_picture = any(key == "image" or key.startswith("image.") for key in changed)
        picture = (
            build_picture(settings) if new_picture else resumed_picture(run, settings, saved, say)
        )
        intended = ("dtype",) if "trainer.precision" in changed else ()
        say(f"resuming from {checkpoint}")
        start = Start(run, checkpoint, picture, force, trust, intended)
        return _solve(settings, open_root(run.root), start, say=say)


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
    _set_threads(settings["threads"])
    model = build_model(settings["model"], trust=trust)

    def parent(title: str) -> MLflowLogger | None:
        return _mlflow_logger(settings, root, run, title)

    stop = GracefulStop(every_n_steps=1)
    with stop.listening():
        return fit_study(
            settings,
            model,
            root=root,
            mlflow_logger=parent,
            stop=stop,
            run=run,
            force=force,
            say=say,
        )


def _resume_study(
    run: RunFolder,
    overrides: Sequence[str],
    force: bool,
    trust: bool,
    say: Callable[[str], None],
) -> StudyResult:
    saved = run.read_record()["config"]
    if not trust:
        check_resolved(saved)
    settings = plain_config(override_config({**saved, "root": str(run.root)}, overrides))
    if not trust:
        check_trusted(settings["model"])
    with hold_run(run):
        say(f"resuming {run.results}")
        return _solve_study(settings, open_root(run.root), run, force=force, trust=trust, say=say)


class _Beginning(L.Callback):
    """Records that a run has begun, once; a resumed one when its checkpoint has proven to fit.

    Until then nothing of the run is touched: one that is refused stays as it was.
    """

    def __init__(self, record: Callable[[], None]) -> None:
        self._record = record
        self.done = False

    def now(self) -> None:
        if not self.done:
            self.done = True
            self._record()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now()


# -- pieces ----------------------------------------------------------------------------------------


def _check_names(settings: Mapping[str, Any]) -> None:
    """Refuse what no store takes, before a run is begun."""
    if not str(settings.get("experiment_name", "eigenexp")).strip():
        raise ConfigError("experiment_name: expected a name, got an empty one; leave it out")


def _set_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: expected at least 1, or null for the machine's, got {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = torch.get_num_threads()
    if cores is not None and used > cores:
        log.warning("%d threads on %d cores: set threads=%d", used, cores, cores)


def _drift_tags(module: EigendistortionModule) -> dict[str, str]:
    """Return what differed from the checkpoint; changed settings are told with the parameters."""
    return {
        f"drift.{difference.field}": f"{difference.saved} → {difference.current}"
        for difference in module.resume_differences
        if not difference.field.startswith("config.")
    }


def _mlflow_logger(
    settings: Mapping[str, Any], root: Path, run: RunFolder | None, title: str
) -> MLflowLogger | None:
    if not settings["logger"]["mlflow"]:
        return None
    return MLflowLogger(
        experiment_name=settings["experiment_name"],
        run_name=settings["run_name"] or title,
        run_id=None if run is None else run.run_id,
        root=root,
        tracking_uri=settings["logger"]["tracking_uri"],
        tags=settings["tags"],
    )


def _facts(
    settings: Mapping[str, Any], picture: Picture, module: EigendistortionModule, status: str
) -> dict[str, Any]:
    """Return the run's line in a table of runs; without a result, what it was to be."""
    row = {**problem_row(settings), "picture": picture.name}
    try:
        spectrum = module.solver.result()
    except Exception:
        if status != "FAILED":
            raise
        return row  # whatever went wrong, it is told where it is raised
    return {**row, **plain(result_row(spectrum))}


def _stop_reason(trainer: Any, module: EigendistortionModule, status: str, code: int) -> str:
    """Say why the run ended, also where the trainer and not the solver ended it."""
    if status == "FAILED":
        error = sys.exc_info()[1]
        return f"failed: {type(error).__name__}" if error is not None else "failed"
    if status == "KILLED":
        return "max_time" if code == OUT_OF_TIME else "signal"
    reason = module.solver.stop_reason
    return str(reason.value) if reason is not StopReason.RUNNING else "max_steps"


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
