"""What the command line takes, and what its help says."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence

__all__ = ["CONFIG_DIR", "command_parsers", "parse"]

CONFIG_DIR = "EIGENEXP_CONFIG_DIR"

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
  eigenexp fit model=./mymodel.py:MyNet model.width=4 model.weights=w.pt      a model of your own
  eigenexp show last                               its table and the paths of its pictures
  eigenexp card last                               trace, effective rank, sensitivity of each pixel
  eigenexp report last                             one HTML file to send to a colleague
  eigenexp stimuli last gain=30 format=jspsych     pictures for an experiment, and its page
  eigenexp simulate stimuli model=lgg,onoff        people made of models, as a table of trials
  eigenexp score trials.csv stimuli                thresholds, and which model they speak for
  eigenexp sync                                    send what waited for the tracking store
  eigenexp ui                                      MLflow and TensorBoard on your runs

exit codes: 0 every pair proven; 3 the run ended, but a pair is not proven; 1 a mistake or a
failure, told in a line; 2 a command that does not exist; 124 trainer.max_time; 130 Ctrl-C, 143
SIGTERM, 138 SIGUSR1 (saved: eigenexp resume goes on)"""

_CARD = """\
The picture and the model are built again from the run's record; the run's pairs, whatever their
status, are taken out first. Writes card.json, sensitivity_map.safetensors and card.png among the
results; eigenexp report shows them."""

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
  noise=poisson noise.dark=0.1    how the response varies, and so what F is; also gaussian,
                          negative_binomial, fano, multiplicative, categorical, bernoulli, …
  perturbations=band perturbations.low=0.1 perturbations.high=0.3    which changes are considered;
                          also mask, taper, colour, whitening, linear_light, …
  analysis.amplitude=false    no true d′ at finite amplitudes (some tens of forward passes a pair)
  analysis.card=true          trace, effective rank, map, … of the whole spectrum: 300 products
  trainer.precision=64-true   trainer.accelerator=cpu   trainer.max_time=00:00:30:00
  study.batch_size=8 study.figures=true    of many pictures; resume … study.retry_failed=true
  study.retry_unproven=true solver.tol=1e-3   solves those again that are not proven
  operator.recompute=true     less memory: activations between blocks are computed again
  operator.model_dtype=bf16   the network's precision (fp16), the solver's stays float32
  operator.compile=true       products by torch.compile, where that gives the same
  model=./mymodel.py:MyNet model.width=4 model.weights=w.pt    your own class, its arguments and
                          weights (safetensors, or a state_dict); also model=mypackage.nets.MyNet
  model=timm.resnet18 model.pretrained=true    a network of timm or torchvision by its name
  model.mean=imagenet     the scaling a model was trained with (numbers, half, clip; model.std=…)
  +trainer.log_every_n_steps=10    any other argument of lightning.Trainer
  +callbacks.mine._target_=package.Callback +callbacks.mine.key=value    your own; +logger.mine too
  experiment=mine         your own groups: files like conf/experiment/mine.yaml in ./conf, or in
                          the folder that --config-dir names
  resume=auto             go on with this command's own unfinished run, if there is one
  run_name=…  experiment_name=…  +tags.key=value  root=mlruns  threads=2

sweeps (-m): one MLflow run with a run a combination; a table in <root>/sweeps/<id>/table.csv
  eigenexp fit -m model=ln,lg image=camera,coffee 'solver.k=range(1,4)'
  hydra/launcher=basic    one after another; joblib: hydra.launcher.n_jobs=4 at a time
  hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.timeout_min=240
  hydra/launcher=ray      on this machine, or hydra.launcher.ray.init.address=auto
  --retry-failed last     run only what has not finished, each from its last checkpoint

exit codes: 0 every pair proven, 3 a pair is not proven, 1 a mistake, a failure or a failed job,
124 trainer.max_time, 130 Ctrl-C, 143 SIGTERM"""

_RESUME = """\
A run that is not on this machine is fetched from MLFLOW_TRACKING_URI: checkpoint, configuration and
picture, each verified by its SHA-256; it goes on in the same MLflow run. Every difference from the
saved run is told; another model, picture or precision stops, unless you ask for it.

  eigenexp resume last trainer.max_steps=5000
  eigenexp resume 5b8d solver.tol=1e-8 trainer.precision=64-true     from the same vectors
  MLFLOW_TRACKING_URI=https://… eigenexp resume 5b8d1c48             on another machine

For a scheduler that restarts the same command: eigenexp fit … resume=auto"""

_SHOW = """\
  eigenexp show                               the newest runs: model, picture, k, λmax, λmin, …
  eigenexp show --sort worst_residual         the best first; --sort=-lambda_max: the largest first
  eigenexp show --limit 0                     all of them
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

_STIMULI = """\
For each pair the amplitudes at which the model's d′ is what was asked for; each picture is written,
read back, and has its passport in manifest.json and manifest.csv. What rounding, clipping or a
radius spoils is told and left out.

  eigenexp stimuli last gain=30 format=jspsych
  eigenexp stimuli 5b8d 91ac levels=0.5,1,2 controls=3 rounding=model format=psychopy,matlab
  eigenexp stimuli last span=0.25,4,6 bits=16 display=2.2 linear_light=true format=raw

settings (key=value):
  levels=0.25,0.5,1,2,4   d′ to be reached;  span=LOW,HIGH,COUNT: spread within the radii;
                          amplitudes=0.1,0.2: in the picture's units
  pairs=all               top, bottom, none, or places: pairs=0,-1;  signs=+ (also - and both)
  controls=0              random directions of unit norm beside them
  gain=1                  d′ is this many times the model's own
  task=2afc               also mafc (alternatives=3) and oddity: for the share of correct answers
  display=srgb            or an exponent;  linear_light=true: the picture's values are light
  bits=8 (16)             rounding=plain (dithered, model: the error that the model sees least)
  format=…                psychopy, jspsych, matlab, raw; several by commas
  allow=…                 write what is flagged: rounding, clipping, validity, clip_radius,
                          unverified (a pair that is not certified)
  tolerance=0.1           of d′ read back, before a stimulus counts as spoiled
  pixels_per_degree=…  seed=0  zoom=0  duration=0.5

The same command goes on with an export that was killed; files that are whole are not written again.

exit codes: 0 written; 3 written, without pairs that are not certified; 1 nothing was"""

_SYNC = """\
While a store is down or full a run goes on; what it logs waits under <root>/spool. This sends it,
each point once, and tells every run's fate in a line. Exit code 1 when something still waits."""

_DELETE = """\
  eigenexp delete 5b8d 91ac
  eigenexp delete last --yes                  without being asked

A run that somebody works on is left alone. In a tracking store the run is marked as deleted, and
can be restored there (mlflow gc removes it for good)."""


_SIMULATE = """\
settings:
  model=lgg,onoff    whose d′ the observers have; default: all that the stimuli know. Another, or
                     one with a noise or settings of its own, is built as for fit and asked about
                     the files: model=mypackage.Net model.width=4 noise=poisson noise.dark=0.1
  trials=200         a distortion, spread evenly over its stimuli
  gain=auto          d′ of the observer over the model's; auto: the levels suit the observer
  lapses=0.01        share of answers without looking
  seed=0             the same seed gives the same trials

The table has a row an answer: observer, trial, stimulus, correct, response, interval, rt, manifest,
as the experiments that eigenexp stimuli writes have it."""

_SCORE = """\
settings:
  model=lgg,onoff    models weighed; default: all that the stimuli know. Others, noise=… and
                     model.…=… as for simulate
  engine=grid        of the psychometric fits; psignifit where it is installed
  confidence=0.95    of the intervals

TRIALS.csv needs the columns observer, trial, stimulus and correct (0 or 1); rows of unknown stimuli
or of another manifest are told and left out. Prints each threshold, D = ln T(bottom) − ln T(top)
beside ½ ln(λtop / λbottom), and each model's posterior under one free gain, R² and misfit."""


_COMPLETION = """\
  eval "$(eigenexp completion bash)"                   in ~/.bashrc
  eval "$(eigenexp completion zsh)"                    in ~/.zshrc, behind compinit
  eigenexp completion fish | source                    in ~/.config/fish/config.fish

Commands, options, runs, groups and what they hold, the keys of settings: eigenexp fit mod<TAB>"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the words after ``eigenexp``; settings may stand on both sides of an option.

    Returns
    -------
    argparse.Namespace
        Among others ``command``. A mistake ends the process: usage, one line, exit code 2.
    """
    parser, parsers = _parser()
    commands = list(parsers)
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None and first not in commands and not _is_value(arguments, first):
        close = difflib.get_close_matches(first, commands, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        parser.error(f"{first}: no such command{hint}; expected one of {', '.join(commands)}")
    options, rest = parser.parse_known_args(arguments)
    wrong = [word for word in rest if word.startswith("-")]
    if wrong or (rest and not hasattr(options, "overrides")):
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _is_value(arguments: Sequence[str], word: str) -> bool:
    return list(arguments).index(word) > 0


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the commands' parsers by their names."""
    return _parser()[1]


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="eigenexp",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=name, parser=sub)
        return sub

    fit = command("fit", "solve, track and keep everything", _groups() + "\n\n" + _FIT_KEYS)
    fit.add_argument("overrides", nargs="*", metavar="key=value", help="group choices and settings")
    fit.add_argument("--config", action="store_true", help="print the configuration and stop")
    fit.add_argument("--cfg", choices=["job"], help="as --config, by Hydra's name")
    text = f"your own groups beside ours; default: ./conf, or what {CONFIG_DIR} names"
    fit.add_argument("--config-dir", metavar="DIR", help=text)
    fit.add_argument("--trust", action="store_true", help="build any class that a sweep names")
    _add_output(fit)
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
    resume = command("resume", text, _RESUME)
    resume.add_argument("name", metavar="RUN", help="run id, its start, 'last', or a path")
    resume.add_argument("overrides", nargs="*", metavar="key=value", help="changed settings")
    resume.add_argument("--force", action="store_true", help="although model or picture differ")
    text = "build any class the run names, send to the store it names"
    resume.add_argument("--trust", action="store_true", help=text)
    _add_output(resume)
    _add_root(resume)

    show = command("show", "print a run's table, or the table of all runs", _SHOW)
    show.add_argument(
        "name", metavar="RUN", nargs="?", help="as for resume, or a sweep; else: all runs"
    )
    show.add_argument(
        "--sort",
        metavar="COLUMN",
        default="-created",
        help="of the table of runs; -COLUMN from the largest down",
    )
    text = "runs in the table (default: 50; 0: all)"
    show.add_argument("--limit", type=int, default=50, metavar="N", help=text)
    show.add_argument("--json", action="store_true", help="as JSON, for scripts")
    _add_root(show)

    text = "numbers of a run's whole spectrum: trace, effective rank, …, each with an interval"
    card = command("card", text, _CARD)
    card.add_argument("name", metavar="RUN", help="as for resume")
    text = "products F·v to spend (default: 300)"
    card.add_argument("--products", type=int, default=300, metavar="N", help=text)
    text = "σ² of the log-volume ½ log det(I + F/σ²) (default: trace / n)"
    card.add_argument("--sigma2", type=float, metavar="S", help=text)
    card.add_argument("--trust", action="store_true", help="build any class the run names")
    card.add_argument("--json", action="store_true", help="as JSON, for scripts")
    _add_root(card)

    report = command("report", "write one HTML file about runs, side by side", _REPORT)
    text = "as for resume; a sweep, a study, a result folder"
    report.add_argument("names", metavar="RUN", nargs="+", help=text)
    report.add_argument(
        "--output", metavar="FILE", help="default: report-<run>.html, or report.html for several"
    )
    report.add_argument("--title", help="of the page")
    _add_root(report)

    text = "write calibrated pictures for an experiment, with a passport each"
    stimuli = command("stimuli", text, _STIMULI)
    stimuli.add_argument(
        "overrides", metavar="RUN | key=value", nargs="+", help="as for report; settings, see below"
    )
    stimuli.add_argument(
        "--output", metavar="DIR", help="default: stimuli-<run>; empty, new, or of this export"
    )
    stimuli.add_argument("--trust", action="store_true", help="build any class that a run names")
    stimuli.add_argument("-q", "--quiet", action="store_true", help="print nothing but trouble")
    _add_root(stimuli)

    text = "write trials of people made of models, say how many trials tell the models apart"
    simulate = command("simulate", text, _SIMULATE)
    simulate.add_argument("stimuli", metavar="STIMULI", help="folder with a manifest.json")
    simulate.add_argument("overrides", nargs="*", metavar="key=value", help="settings, see below")
    text = "table of trials (default: trials.csv)"
    simulate.add_argument("--output", metavar="FILE", default="trials.csv", help=text)
    simulate.add_argument("--force", action="store_true", help="over a file that is there")
    simulate.add_argument("--json", action="store_true", help="as JSON, for scripts")

    score = command("score", "thresholds of an experiment, and what they say of models", _SCORE)
    score.add_argument("trials", metavar="TRIALS.csv", help="table of trials")
    score.add_argument("stimuli", metavar="STIMULI", help="folder with a manifest.json")
    score.add_argument("overrides", nargs="*", metavar="key=value", help="settings, see below")
    text = "page (default: score.html)"
    score.add_argument("--output", metavar="FILE", default="score.html", help=text)
    score.add_argument("--title", help="of the page")
    score.add_argument("--json", action="store_true", help="as JSON, for scripts")

    sync = command("sync", "send what the tracking store has not got yet", _SYNC)
    sync.add_argument("names", metavar="RUN", nargs="*", help="run id or its start; else: all runs")
    _add_root(sync)

    command("models", "list the models that model=… takes")

    text = "delete runs: their checkpoints, results and logs on this machine"
    delete = command("delete", text, _DELETE)
    delete.add_argument("names", metavar="RUN", nargs="+", help="as for resume")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    _add_root(delete)

    text = "print what lets a shell complete commands, settings and runs"
    completion = command("completion", text, _COMPLETION)
    completion.add_argument("shell", nargs="?", choices=["bash", "zsh", "fish"], default="bash")
    completion.add_argument("--line", help=argparse.SUPPRESS)
    _add_root(completion)

    ui = command("ui", "start MLflow and TensorBoard on your runs (Ctrl-C ends both)")
    ui.add_argument("--open", action="store_true", help="show them in the web browser")
    ui.add_argument("--no-tensorboard", action="store_true", help="MLflow alone, which is sooner")
    ui.add_argument("--mlflow-port", type=int, default=5000, metavar="PORT")
    ui.add_argument("--tensorboard-port", type=int, default=6006, metavar="PORT")
    _add_root(ui)
    return parser, dict(commands.choices)


def _add_output(parser: argparse.ArgumentParser) -> None:
    text = "print the result as JSON; everything else goes to standard error"
    parser.add_argument("--json", action="store_true", help=text)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but trouble")


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
