"""``eigenexp simulate`` and ``eigenexp score``: people made of models, models judged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eigenexp.console import say
from eigenexp.errors import ConfigError, InputError

if TYPE_CHECKING:
    from eigenexp.scoring import Design, Observer, Prediction

__all__ = ["score_command", "simulate_command"]

_SIMULATE = {"model": "", "trials": "200", "lapses": "0.01", "gain": "auto", "seed": "0"}
_SCORE = {"model": "", "engine": "grid", "confidence": "0.95"}


def simulate_command(options: argparse.Namespace) -> int:
    """Write the trials of observers made of models, and say how many tell these apart."""
    given, overrides = _settings(options.overrides, _SIMULATE, "simulate")
    from eigenexp.scoring import Observer, fitting_gain, read_design, simulate, write_trials

    target = Path(options.output)
    if target.exists() and not options.force:
        raise InputError(
            f"--output: expected a new file, got {target}, which is there; name another, or --force"
        )
    design = read_design(options.stimuli)
    trials = _number("trials", given["trials"], whole=True)
    lapses = _number("lapses", given["lapses"])
    observers = []
    for prediction in _predictions(design, options.stimuli, given, overrides):
        auto = given["gain"] == "auto"
        gain = fitting_gain(design, prediction) if auto else _number("gain", given["gain"])
        observers.append(Observer(prediction, gain, lapses))
    if not observers:
        raise InputError("model: expected one to simulate, got none; name it: model=onoff")
    seed = _number("seed", given["seed"], whole=True)
    rows = simulate(design, observers, int(trials), int(seed))
    write_trials(rows, target)
    if options.json:
        print(json.dumps(_simulated(design, observers, target), indent=2))
        return 0
    for one in observers:
        say(f"{one.prediction.model}: gain {one.gain:.4g}, lapses {one.lapses:g}")
    if len(observers) > 1:
        say("\n".join(_separation_lines(design, observers)))
    say(f"{len(rows)} trials: {target.absolute()}")
    return 0


def _separation_lines(design: Design, observers: Sequence[Observer]) -> list[str]:
    from eigenexp.scoring import separate

    lines = []
    for one in separate(design, observers):
        often = (
            f"{one.trials} trials a distortion"
            if one.trials is not None
            else "no number of trials with these stimuli"
        )
        lines.append(
            f"{one.model}: the highest posterior in 95 of 100 experiments after {often} "
            f"(hardest to tell from {one.rival})"
        )
    return lines


def _simulated(design: Design, observers: Sequence[Observer], target: Path) -> dict[str, object]:
    from eigenexp.scoring import separate

    told = separate(design, observers) if len(observers) > 1 else ()
    return {
        "trials": str(target.absolute()),
        "observers": [
            {"model": one.prediction.model, "gain": one.gain, "lapses": one.lapses}
            for one in observers
        ],
        "separation": [
            {"model": one.model, "trials": one.trials, "rival": one.rival} for one in told
        ],
    }


def score_command(options: argparse.Namespace) -> int:
    """Print what a table of trials says of the models, and write its page."""
    given, overrides = _settings(options.overrides, _SCORE, "score")
    from eigenexp.scoring import read_design, score

    design = read_design(options.stimuli)
    predictions = _predictions(design, options.stimuli, given, overrides)
    confidence = _number("confidence", given["confidence"])
    result = score(
        options.trials,
        design,
        predictions=predictions,
        confidence=confidence,
        engine=given["engine"],
    )
    if options.json:
        print(json.dumps(result.as_json(), indent=2, allow_nan=False))
    else:
        say("\n".join(result.lines()))
    from eigenexp.report.score import write_score_report

    page = write_score_report(result, options.output, title=options.title)
    if not options.json:
        say(f"\n{page.absolute()}")
    return 0


def _predictions(
    design: Design, stimuli: str, given: Mapping[str, str], overrides: Sequence[str]
) -> tuple[Prediction, ...]:
    """Return what the models named say of the stimuli; all that the manifest knows by default.

    A name that the manifest does not know, or any with a noise or model settings of its own, is
    built as ``eigenexp fit`` does, and asked about the files.
    """
    names = _names(given["model"])
    if not names:
        if overrides:
            raise ConfigError(f"model: expected models for {overrides[0]}, got none; name them")
        return design.predictions
    known = {one.model.lower(): one for one in design.predictions}
    found = []
    for name in names:
        if not overrides and name.lower() in known:
            found.append(known[name.lower()])
            continue
        if not _can_be_built(name):
            design.of_models([name])  # says which there are
        found.append(_look(stimuli, name, known if not overrides else {}, overrides))
    if len({one.model for one in found}) < len(found):
        raise ConfigError(f"model: expected each once, got {given['model']}")
    return tuple(found)


def _names(models: str) -> list[str]:
    return [name.strip() for name in models.strip("[]").split(",") if name.strip()]


def _can_be_built(name: str) -> bool:
    from eigenexp.experiments.config import options

    return "." in name or name in options("model")


def _look(
    stimuli: str, name: str, known: Mapping[str, Prediction], overrides: Sequence[str]
) -> Prediction:
    from eigenexp.experiments.config import compose_config
    from eigenexp.experiments.noise import build_noise
    from eigenexp.experiments.targets import build_model
    from eigenexp.runs.overview import model_name
    from eigenexp.scoring import predict

    settings = compose_config([f"model={name}", *overrides])
    own = known.get(model_name(settings.model).lower())
    if own is not None:  # the stimuli have it by its class
        return own
    model = build_model(settings.model)
    return predict(stimuli, model, build_noise(settings.noise), name)


def _settings(
    words: Sequence[str], known: dict[str, str], command: str
) -> tuple[dict[str, str], list[str]]:
    """Return ``key=value`` words over what is usual, and those of noise and models.

    Raises
    ------
    ConfigError
        When a word is no setting, or no such setting exists.
    """
    found = dict(known)
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and (key == "noise" or key.startswith(("noise.", "model."))):
            overrides.append(word)
            continue
        if not equals or key not in known:
            raise ConfigError(
                f"{command}: expected settings among {', '.join(f'{k}=…' for k in known)}, "
                f"got {word!r}"
            )
        found[key] = value
    return found, overrides


def _number(key: str, text: str, *, whole: bool = False) -> float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{key}: expected {kind}, got {text!r}") from None
