"""The command line: ``eigenexp fit | resume | show | ui``; everything heavy loads when used."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eigenexp.errors import EigenexpError

__all__ = ["main"]

_DESCRIPTION = """\
The image changes a vision model feels most and least.

eigenexp finds the top and bottom eigenvectors of a model's Fisher information at a picture, as a
tracked, resumable Lightning run, with a residual, an error bound and a status on every pair."""

_EXAMPLES = """\
examples:
  eigenexp fit                                     OnOff at a crop of camera, one pair at each end
  eigenexp fit model=lgg image=coffee image.crop=96 solver.k=3 trainer.precision=64-true
  eigenexp fit image=file image.source=cat.png image.resize=64 solver=lanczos solver.tol=1e-6
  eigenexp resume last trainer.max_steps=5000      go on where the last run stopped
  eigenexp show last                               its table and the paths of its pictures
  eigenexp ui                                      MLflow and TensorBoard on your runs"""

_FIT_KEYS = """\
settings (key=value; see them all with --config):
  solver.k=2              eigenpairs at each end
  solver.which=both       top, bottom or both
  solver.tol=1e-4         converged when |Fv - λv| <= tol * λmax
  solver.max_products=N   budget of products F·v
  image.crop=[t,l,h,w]    or one number for a centred square;  image.resize=64
  image=folder image.path=photos      many pictures: a folder, a glob ('photos/*.png') or a list
  trainer.devices=2 parallel=pictures each process its own pictures (also: columns, average)
  image.channels=color    gray, color or keep
  model.layer=NAME        respond with a layer of the model, by its dotted name
  trainer.precision=64-true   trainer.accelerator=cpu   trainer.max_time=00:00:30:00
  run_name=…  experiment_name=…  +tags.key=value  root=mlruns  threads=2"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    A user's mistake is one line on standard error and exit code 1; Ctrl-C is 130.
    """
    options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(options.run(options))
    except EigenexpError as error:
        print(f"eigenexp: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("eigenexp: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left; so do we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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

    resume = command("resume", _resume, "go on with a run, ending as if it had not stopped")
    resume.add_argument("name", metavar="RUN", help="run id, its start, 'last', or a path")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    resume.add_argument("--force", action="store_true", help="although model or picture differ")
    resume.add_argument("--trust", action="store_true", help="build any class the run names")
    _add_root(resume)

    show = command("show", _show, "print a run's table and the paths of its pictures")
    show.add_argument("name", metavar="RUN", nargs="?", help="as for resume; else: list the runs")
    _add_root(show)

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


def _quiet() -> None:
    """Leave the screen to the run: libraries imported so far speak up only in trouble."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("lightning", "alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _fit(options: argparse.Namespace) -> int:
    from eigenexp.config import compose_config

    config = compose_config(options.overrides)
    if options.config:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config, resolve=True), end="")
        return 0
    from eigenexp.run import fit, summary

    _quiet()
    result = fit(config)
    print("\n".join(summary(result)))
    return result.exit_code


def _resume(options: argparse.Namespace) -> int:
    from eigenexp.run import resume, summary

    _quiet()
    result = resume(
        options.name,
        options.overrides,
        root=options.root,
        force=options.force,
        trust=options.trust,
    )
    print("\n".join(summary(result)))
    return result.exit_code


def _show(options: argparse.Namespace) -> int:
    from eigenexp.runs import find_run, list_runs

    if options.name is None:
        for run in list_runs(options.root):
            record = run.read_record()
            print(f"{run.run_id}  {record['created']}  {record['status']:<9} {record['title']}")
        return 0
    run = find_run(options.name, options.root)
    record = run.read_record()
    print(f"run {run.run_id}: {record['title']}")
    reason = record.get("stop_reason")
    print(f"status {record['status']}" + (f" ({reason})" if reason else ""))
    if record.get("study"):
        from eigenexp.study.show import study_lines

        print("\n".join(study_lines(run)))
        return 0
    path = run.results / "spectrum.safetensors"
    if not path.is_file():
        print(f"no result yet; go on with: eigenexp resume {run.run_id}")
        return 0
    from eigenexp.spectrum import Spectrum

    print()
    print(Spectrum.load(path))
    print()
    for result in sorted(run.results.iterdir()):
        print(result)
    return 0


def _ui(options: argparse.Namespace) -> int:
    from eigenexp.dashboards import serve

    return serve(Path(options.root), options.mlflow_port, options.tensorboard_port)


if __name__ == "__main__":
    sys.exit(main())
