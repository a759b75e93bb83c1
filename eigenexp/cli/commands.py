"""The command line, ``eigenexp COMMAND``; everything heavy loads when used."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eigenexp.console import printable, say, tell_error
from eigenexp.console import quiet as _quiet
from eigenexp.errors import EigenexpError, RunNotFoundError

if TYPE_CHECKING:
    from eigenexp.sweeps.manifest import SweepFolder

__all__ = ["main"]

_MOST_REPORTED = 24

_DESCRIPTION = """\
The image changes a vision model feels most and least.

eigenexp finds the top and bottom eigenvectors of a model's Fisher information at a picture, as a
tracked, resumable Lightning run, with a residual, an error bound and a status on every pair."""

_EXAMPLES = """\
examples:
  eigenexp fit                                     OnOff at a crop of camera, one pair at each end
  eigenexp fit model=lgg image=coffee image.crop=96 solver.k=3 trainer.precision=64-true
  eigenexp fit image=file image.source=cat.png image.resize=64 solver=lanczos solver.tol=1e-6
  eigenexp fit -m model=ln,lg,lgg image=camera,coffee solver.k=1,4    a sweep, one job each
  eigenexp resume last trainer.max_steps=5000      go on where the last run stopped
  eigenexp show last                               its table and the paths of its pictures
  eigenexp report last                             one HTML file to send to a colleague
  eigenexp sync                                    send what waited for the tracking store
  eigenexp ui                                      MLflow and TensorBoard on your runs"""

_FIT_KEYS = """\
settings (key=value; see them all with --config):
  solver.k=2              eigenpairs at each end
  solver.which=both       top, bottom or both
  solver.tol=1e-4         converged when |Fv - λv| <= tol * λmax
  solver.max_products=N   budget of products F·v
  image.crop=[t,l,h,w]    or the side of a square, about the usual crop;  image.resize=64
  image=folder image.path=photos      many pictures: a folder, a glob ('photos/*.png') or a list
  trainer.devices=2 parallel=pictures each process its own pictures (also: columns, average)
  image.channels=color    gray, color or keep
  model.layer=NAME        respond with a layer of the model, by its dotted name
  trainer.precision=64-true   trainer.accelerator=cpu   trainer.max_time=00:00:30:00
  study.batch_size=8 study.figures=true    of many pictures; resume … study.retry_failed=true
  study.retry_unproven=true solver.tol=1e-3   solves those again that are not proven
  operator.recompute=true     less memory: activations between blocks are computed again
  operator.model_dtype=bf16   the network's precision (fp16), the solver's stays float32
  operator.compile=true       products by torch.compile, where that gives the same
  resume=auto             go on with this command's own unfinished run, if there is one
  run_name=…  experiment_name=…  +tags.key=value  root=mlruns  threads=2

sweeps (-m): one MLflow run with a run a combination; a table in <root>/sweeps/<id>/table.csv
  eigenexp fit -m model=ln,lg image=camera,coffee 'solver.k=range(1,4)'
  hydra/launcher=basic    one after another; joblib: hydra.launcher.n_jobs=4 at a time
  hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.timeout_min=240
  hydra/launcher=ray      on this machine, or hydra.launcher.ray.init.address=auto
  --retry-failed last     run only what has not finished, each from its last checkpoint"""

_RESUME = """\
A run that is not on this machine is fetched from MLFLOW_TRACKING_URI: checkpoint, configuration and
picture, each verified by its SHA-256; it goes on in the same MLflow run. Every difference from the
saved run is told; another model, picture or precision stops, unless you ask for it.

  eigenexp resume last trainer.max_steps=5000
  eigenexp resume 5b8d solver.tol=1e-8 trainer.precision=64-true     from the same vectors
  MLFLOW_TRACKING_URI=https://… eigenexp resume 5b8d1c48             on another machine

For a scheduler that restarts the same command: eigenexp fit … resume=auto"""

_SHOW = """\
  eigenexp show                               every run: model, picture, k, λmax, λmin, residual, …
  eigenexp show --sort worst_residual         the best first; --sort=-lambda_max: the largest first
  eigenexp show last                          one run: its pairs, the paths of its files

columns: run, created, status, model, picture, k, lambda_max, lambda_min, worst_residual, pairs,
products"""

_REPORT = """\
One file, no network: send it to a colleague, open it on a phone, print it. It holds the picture,
each distortion at a strength of your choice, certificates, convergence, settings and versions.

  eigenexp report last
  eigenexp report 5b8d 91ac --output onoff-against-lgg.html    two runs side by side
  eigenexp report 20261124-1201                                every run of a sweep

A run still at work, killed or failed is reported as far as its last checkpoint; one that is not on
this machine is fetched from MLFLOW_TRACKING_URI."""

_SYNC = """\
While a store is down or full a run goes on; what it logs waits under <root>/spool. This sends it,
each point once, and tells every run's fate in a line. Exit code 1 when something still waits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    A user's mistake is one line on standard error and exit code 1; Ctrl-C is 130.
    """
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(options.run(options))
    except EigenexpError as error:
        tell_error(error)
        return 1
    except KeyboardInterrupt:
        print("eigenexp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left; so do we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; settings may stand on both sides of an option."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eigenexp",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: object, text: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    fit = command("fit", _fit, "solve, track and keep everything", _groups() + "\n\n" + _FIT_KEYS)
    fit.add_argument("overrides", nargs="*", metavar="key=value", help="group choices and settings")
    fit.add_argument("--config", action="store_true", help="print the configuration and stop")
    fit.add_argument(
        "-m", "--multirun", action="store_true", help="sweep: key=a,b runs every combination"
    )
    fit.add_argument(
        "--retry-failed",
        "--resume",
        dest="retry",
        metavar="SWEEP",
        help="run what a sweep has not finished, from its checkpoints: its id or 'last'",
    )

    text = "go on with a run, ending as if it had not stopped"
    resume = command("resume", _resume, text, _RESUME)
    resume.add_argument("name", metavar="RUN", help="run id, its start, 'last', or a path")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    resume.add_argument("--force", action="store_true", help="although model or picture differ")
    resume.add_argument("--trust", action="store_true", help="build any class the run names")
    _add_root(resume)

    show = command("show", _show, "print a run's table, or the table of all runs", _SHOW)
    show.add_argument(
        "name", metavar="RUN", nargs="?", help="as for resume, or a sweep; else: all runs"
    )
    show.add_argument(
        "--sort",
        metavar="COLUMN",
        default="created",
        help="of the table of runs; -COLUMN from the largest down",
    )
    _add_root(show)

    report = command("report", _report, "write one HTML file about runs, side by side", _REPORT)
    text = "as for resume; a sweep, a study, a result folder"
    report.add_argument("names", metavar="RUN", nargs="+", help=text)
    report.add_argument(
        "--output", metavar="FILE", help="default: report-<run>.html, or report.html for several"
    )
    report.add_argument("--title", help="of the page")
    _add_root(report)

    sync = command("sync", _sync, "send what the tracking store has not got yet", _SYNC)
    sync.add_argument("names", metavar="RUN", nargs="*", help="run id or its start; else: all runs")
    _add_root(sync)

    ui = command("ui", _ui, "open MLflow and TensorBoard on your runs (Ctrl-C ends both)")
    ui.add_argument("--mlflow-port", type=int, default=5000, metavar="PORT")
    ui.add_argument("--tensorboard-port", type=int, default=6006, metavar="PORT")
    _add_root(ui)
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("EIGENEXP_ROOT", "mlruns")
    parser.add_argument("--root", default=default, metavar="DIR", help=f"default: {default}")


def _version() -> str:
    from eigenexp import __version__

    return f"eigenexp {__version__}"


def _groups() -> str:
    """List the configuration groups with their options, from the files themselves."""
    from importlib.resources import files

    lines = ["groups (group=option):"]
    for group in ("model", "image", "solver", "trainer", "logger", "experiment"):
        names = [e.name for e in files("eigenexp.conf").joinpath(group).iterdir()]
        chosen = sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))
        lines.append(f"  {group + '=':<12}{' | '.join(chosen)}")
    return "\n".join(lines)


def _fit(options: argparse.Namespace) -> int:
    if options.retry is not None or options.multirun:
        return _sweep(options)
    from eigenexp.experiments.config import compose_config

    config = compose_config(options.overrides)
    if options.config:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config, resolve=True), end="")
        return 0
    from eigenexp.experiments.experiment import fit, summary

    _quiet()
    result = fit(config, say=say)
    _say_lines(summary(result))
    return result.exit_code


def _sweep(options: argparse.Namespace) -> int:
    from eigenexp.sweeps import retry, sweep

    _quiet()
    if options.retry is None:
        return sweep(options.overrides, say=say)
    root = os.environ.get("EIGENEXP_ROOT", "mlruns")
    for override in options.overrides:  # where to look, as fit is told it
        root = override.partition("=")[2] if override.startswith("root=") else root
    others = [o for o in options.overrides if not o.startswith("root=")]
    return retry(options.retry, others, root=root, say=say)


def _resume(options: argparse.Namespace) -> int:
    from eigenexp.experiments.experiment import resume, summary

    _quiet()
    result = resume(
        options.name,
        options.overrides,
        root=options.root,
        force=options.force,
        trust=options.trust,
        say=say,
    )
    _say_lines(summary(result))
    return result.exit_code


def _say_lines(lines: Sequence[str]) -> None:
    if lines:
        say("\n".join(lines))


def _show(options: argparse.Namespace) -> int:
    from eigenexp.runs.folder import find_run, list_runs

    if options.name is None:
        from eigenexp.runs.table import format_runs

        say("\n".join(format_runs(list_runs(options.root), options.sort)))
        return 0
    sweep = _named_sweep(options.name, options.root)
    if sweep is not None:
        from eigenexp.sweeps import show

        show(sweep, say=say)
        return 0
    run = find_run(options.name, options.root)
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
    for result in sorted(run.results.iterdir()):
        say(str(result))
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


def _ui(options: argparse.Namespace) -> int:
    from eigenexp.tracking.dashboards import serve

    return serve(Path(options.root), options.mlflow_port, options.tensorboard_port)
