"""The command line, ``eigenexp COMMAND``; everything heavy loads when used."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eigenexp.cli.parser import CONFIG_DIR, command_parsers, parse
from eigenexp.console import printable, say, tell_error
from eigenexp.console import quiet as _quiet
from eigenexp.errors import ConfigError, EigenexpError, InputError, RunNotFoundError
from eigenexp.storage.plain import plain

if TYPE_CHECKING:
    from eigenexp.experiments.picture import RunResult
    from eigenexp.experiments.study import StudyResult
    from eigenexp.runs.folder import RunFolder
    from eigenexp.sweeps.manifest import SweepFolder

__all__ = ["main"]

_MOST_REPORTED = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    A user's mistake is one line on standard error and exit code 1; Ctrl-C is 130.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(_COMMANDS[options.command](options))
    except EigenexpError as error:
        tell_error(error)
        return 1
    except MemoryError:
        tell_error(EigenexpError("memory: expected room for it, got none left on this machine"))
        return 1
    except KeyboardInterrupt:
        print("eigenexp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left; so do we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fit(options: argparse.Namespace) -> int:
    if options.config_dir is not None:
        os.environ[CONFIG_DIR] = str(Path(options.config_dir).absolute())
    if options.retry is not None or options.multirun:
        return _sweep(options)
    from eigenexp.experiments.config import compose_config, plain_config

    settings = compose_config(options.overrides)
    if options.config or options.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(plain_config(settings))), end="")
        return 0
    if settings.logger.mlflow:
        _prepare_sender(settings.root, settings.logger.tracking_uri)
    from eigenexp.experiments.experiment import fit

    _quiet()
    _tell_intended_changes()
    if options.quiet:
        settings.trainer.enable_progress_bar = False
    return _end(fit(settings, say=_teller(options)), options)


def _tell_intended_changes() -> None:
    """Tell what a person changed before a resume, also where Python makes errors of warnings."""
    from eigenexp.checkpoints import IntendedChange

    warnings.filterwarnings("always", category=IntendedChange)


def _prepare_sender(root: str, uri: str | None) -> None:
    """Let the process that sends get ready while this one imports Lightning."""
    # As Lightning will tell the ranks apart, which is too late to ask.
    ranks = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if any(rank not in ("", "0") for rank in ranks):
        return
    from eigenexp.tracking.senders import SENDERS

    SENDERS.prepare(root, uri)


def _sweep(options: argparse.Namespace) -> int:
    from eigenexp.sweeps import retry, sweep

    _quiet()
    if options.json:
        raise ConfigError("--json: expected one run, got a sweep; read its table.csv")
    tell = _teller(options)
    if options.retry is None:
        return sweep(options.overrides, say=tell)
    root = os.environ.get("EIGENEXP_ROOT", "mlruns")
    for override in options.overrides:  # where to look, as fit is told it
        root = override.partition("=")[2] if override.startswith("root=") else root
    others = [o for o in options.overrides if not o.startswith("root=")]
    return retry(options.retry, others, root=root, trust=options.trust, say=tell)


def _resume(options: argparse.Namespace) -> int:
    from eigenexp.experiments.experiment import resume

    _quiet()
    _tell_intended_changes()
    result = resume(
        options.name,
        options.overrides,
        root=options.root,
        force=options.force,
        trust=options.trust,
        say=_teller(options),
    )
    return _end(result, options)


def _teller(options: argparse.Namespace) -> Callable[[str], None]:
    """Return what says a run's lines: nothing, or on standard error where JSON is the output."""
    if options.quiet:
        return lambda text: None
    return partial(say, file=sys.stderr) if options.json else say


def _end(result: RunResult | StudyResult, options: argparse.Namespace) -> int:
    """Print what a run came to; return its exit code."""
    from eigenexp.distributed.ranks import is_first_rank
    from eigenexp.experiments.summary import as_json, exit_code, summary

    if options.json:
        if is_first_rank():
            print(json.dumps(as_json(result), indent=2))
    elif not options.quiet:
        lines = summary(result)
        if lines:
            say("\n".join(lines))
    return exit_code(result)


def _show(options: argparse.Namespace) -> int:
    from eigenexp.runs.folder import find_run, list_runs

    if options.name is None:
        from eigenexp.runs.table import format_runs, run_rows

        runs = list_runs(options.root)
        if options.json:
            print(json.dumps(plain(run_rows(runs)), indent=2))
            return 0
        say("\n".join(format_runs(runs, options.sort, options.limit)))
        return 0
    sweep = _named_sweep(options.name, options.root)
    if sweep is not None:
        from eigenexp.sweeps import show

        show(sweep, say=say)
        return 0
    run = find_run(options.name, options.root)
    if options.json:
        print(json.dumps(plain(_run_facts(run)), indent=2))
        return 0
    record = run.read_record()
    # A damaged or foreign record may hold anything.
    say(printable(f"run {run.run_id}: {record.get('title')}"))
    reason = record.get("stop_reason")
    say(printable(f"status {record.get('status')}" + (f" ({reason})" if reason else "")))
    if record.get("error"):
        say(printable(f"error: {record['error']}"))
    from eigenexp.runs.overview import problem_lines

    for line in problem_lines(run, record):
        say(printable(line))
    if record.get("study"):
        from eigenexp.study.show import study_lines

        say("\n".join(study_lines(run)))
        return 0
    from eigenexp.spectrum import SPECTRUM_FILE, Spectrum

    path = run.results / SPECTRUM_FILE
    if not path.is_file():
        print(f"no result yet; go on with: eigenexp resume {run.run_id}")
        return 0
    say(f"\n{Spectrum.load(path)}\n")
    amplitudes, card = _analyses(run)
    if amplitudes is not None:
        from eigenexp.analysis.amplitude_table import amplitude_lines

        say("\n".join([*amplitude_lines(amplitudes), ""]))
    if card is not None:
        from eigenexp.analysis.card_files import card_lines

        say("\n".join([*card_lines(card), ""]))
    for result in sorted(run.results.iterdir()):
        say(str(result))
    return 0


def _analyses(run: RunFolder) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the records of a run's finite amplitudes and of its spectrum card, where whole."""
    from eigenexp.analysis.amplitude_table import read_amplitude
    from eigenexp.analysis.card_files import read_card

    return _whole(read_amplitude, run.results), _whole(read_card, run.results)


def _whole(read: Callable[[Path], dict[str, Any] | None], folder: Path) -> dict[str, Any] | None:
    """Return what a file of results holds; None, and a line, where it is damaged."""
    from eigenexp.errors import CheckpointError

    try:
        return read(folder)
    except CheckpointError as error:
        tell_error(error)
        return None


def _run_facts(run: RunFolder) -> dict[str, Any]:
    """Return a run's record, and its pairs or, of a study, its pictures' records."""
    from eigenexp.spectrum import SPECTRUM_FILE, Spectrum

    facts: dict[str, Any] = {**run.read_record(), "results": str(run.results)}
    path = run.results / SPECTRUM_FILE
    if facts.get("study"):
        from eigenexp.study.folder import StudyFolder

        facts["pictures"] = list(StudyFolder(run.results).records().values())
    elif path.is_file():
        facts["pairs"] = Spectrum.load(path).rows()
        facts["amplitude"], facts["card"] = _analyses(run)
    return facts


def _card(options: argparse.Namespace) -> int:
    from eigenexp.analysis.card_files import card_lines
    from eigenexp.experiments.carding import card_of_run

    _quiet()
    card, paths = card_of_run(
        options.name, options.root, max_products=options.products, trust=options.trust
    )
    record = card.as_record(options.sigma2)
    if options.json:
        print(json.dumps(plain(record), indent=2))
        return 0
    say("\n".join([*card_lines(record), "", *(str(path) for path in paths.values())]))
    return 0


def _models(options: argparse.Namespace) -> int:
    from eigenexp.experiments.config import model_lines

    say("\n".join(model_lines()))
    return 0


def _delete(options: argparse.Namespace) -> int:
    from eigenexp.cli.deleting import delete_run
    from eigenexp.runs.folder import find_run

    _quiet()
    runs = [find_run(name, options.root) for name in options.names]
    if not options.yes:
        if not sys.stdin.isatty():
            raise InputError("delete: expected --yes where nobody can be asked")
        names = ", ".join(run.run_id for run in runs)
        if input(f"delete {names} for good? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    for run in runs:
        for line in delete_run(run):
            say(line)
    return 0


def _named_sweep(name: str, root: str) -> SweepFolder | None:
    """Return the sweep of that name; ``None`` where it is no sweep's."""
    if name == "last" or not list(Path(root).glob(f"sweeps/{name}*/manifest.json")):
        return None
    from eigenexp.sweeps import find_sweep

    return find_sweep(name, root)


def _report(options: argparse.Namespace) -> int:
    from eigenexp.report import load_runs, write_report

    _quiet()
    names = [run for name in options.names for run in _runs_of(name, options.root)]
    runs = [run for name in names for run in load_runs(name, options.root)]
    if len(runs) > _MOST_REPORTED:
        left = len(runs) - _MOST_REPORTED
        say(
            f"the first {_MOST_REPORTED} of {len(runs)} are in it; name runs to choose ({left} out)"
        )
        runs = runs[:_MOST_REPORTED]
    alone = runs[0].run_id[:8] if len({run.run_id for run in runs}) == 1 else ""
    output = options.output or (f"report-{alone}.html" if alone else "report.html")
    say(str(write_report(runs, output, title=options.title).absolute()))
    return 0


def _stimuli(options: argparse.Namespace) -> int:
    from eigenexp.stimuli import parse_settings

    words = options.overrides
    settings = parse_settings([w for w in words if "=" in w and not Path(w).exists()])
    names = [word for word in words if "=" not in word or Path(word).exists()]
    if not names:
        raise InputError("stimuli: expected a run, such as last, got settings alone")
    _quiet()
    from eigenexp.cli.exporting import export_stimuli

    runs = [run for name in names for run in _runs_of(name, options.root)]
    return export_stimuli(
        runs,
        settings,
        options.output,
        root=options.root,
        trust=options.trust,
        quiet=options.quiet,
    )


def _runs_of(name: str, root: str) -> list[str]:
    """Return a sweep's runs that have one, or the name itself where it is no sweep's."""
    sweep = _named_sweep(name, root)
    if sweep is None:
        return [name]
    runs = [str(job.facts["run_id"]) for job in sweep.jobs() if job.facts.get("run_id")]
    if not runs:
        raise RunNotFoundError(
            f"sweep {sweep.sweep_id}: expected a finished job to report, got none yet; go on with: "
            f"eigenexp fit --retry-failed {sweep.sweep_id}"
        )
    return runs


def _simulate(options: argparse.Namespace) -> int:
    from eigenexp.cli.scoring import simulate_command

    return simulate_command(options)


def _score(options: argparse.Namespace) -> int:
    from eigenexp.cli.scoring import score_command

    return score_command(options)


def _sync(options: argparse.Namespace) -> int:
    from eigenexp.tracking import sync

    _quiet()
    found = [sync(options.root, name) for name in options.names or [None]]
    reports = {report.local_id: report for group in found for report in group}
    for report in reports.values():
        said = "sent" if report.complete else f"waits: {report.problem or 'more is being written'}"
        if report.refused:
            kept = f", kept in {report.refused_path}" if report.refused_path else ""
            said += f"; {report.refused} refused{kept}"
        say(f"{report.run_id or report.local_id}  {report.points} points  {said}")
    if not reports:
        print("nothing waits")
    return 0 if all(r.complete and not r.refused for r in reports.values()) else 1


def _completion(options: argparse.Namespace) -> int:
    from eigenexp.cli.completing import SCRIPTS, candidates

    if options.line is None:
        print(SCRIPTS[options.shell])
        return 0
    print("\n".join(candidates(options.line, command_parsers(), options.root)))
    return 0


def _ui(options: argparse.Namespace) -> int:
    from eigenexp.tracking.dashboards import serve

    tensorboard = None if options.no_tensorboard else options.tensorboard_port
    return serve(Path(options.root), options.mlflow_port, tensorboard, browse=options.open)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fit": _fit,
    "resume": _resume,
    "show": _show,
    "card": _card,
    "report": _report,
    "stimuli": _stimuli,
    "simulate": _simulate,
    "score": _score,
    "sync": _sync,
    "models": _models,
    "delete": _delete,
    "completion": _completion,
    "ui": _ui,
}
