"""Run the experiment of this folder in PsychoPy: of several pictures, which one is changed.

    python run_psychopy.py --observer ab --repeats 10
    python run_psychopy.py --observer ab --method quest --trials 40

The first shows every stimulus --repeats times, in random order; the second lets QUEST+ choose among
the amplitudes of each distortion, --trials times a distortion, all of them in random order. Answers
are keys (1, 2, …); Escape ends, and what was answered is kept: a line a trial in trials-*.csv,
written at once, which `eigenexp score` reads. --windowed shows a window instead of the full screen.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
COLUMNS = ("observer", "trial", "stimulus", "correct", "response", "interval", "rt", "manifest")


class StoppedError(Exception):
    """The observer ended the experiment."""


class Screen(Protocol):
    """What the experiment needs of a screen and a keyboard."""

    def tell(self, text: str) -> None:
        """Show a text until a key is pressed."""

    def blank(self, seconds: float) -> None:
        """Show nothing but a point to look at."""

    def picture(self, path: Path, seconds: float) -> None:
        """Show a picture."""

    def ask(self, text: str, keys: Sequence[str]) -> tuple[str, float]:
        """Return the key of these that was pressed, and after how many seconds."""


class PsychoPyScreen:
    """A screen of PsychoPy, its pixels shown as they are in the files."""

    def __init__(self, zoom: int, windowed: bool) -> None:
        from psychopy import core, event, visual

        self._core, self._event, self._visual = core, event, visual
        self._zoom = zoom
        self._window = visual.Window(
            fullscr=not windowed, size=(1024, 768), units="pix", color=0, allowGUI=windowed
        )
        self._text = visual.TextStim(self._window, height=28, wrapWidth=900)
        self._point = visual.TextStim(self._window, text="+", height=28)
        self._pictures: dict[Path, Any] = {}

    def tell(self, text: str) -> None:
        """Show a text until a key is pressed."""
        self._show_text(text)
        self._keys(None)

    def blank(self, seconds: float) -> None:
        """Show nothing but a point to look at."""
        self._point.draw()
        self._window.flip()
        self._core.wait(seconds)

    def picture(self, path: Path, seconds: float) -> None:
        """Show a picture."""
        if path not in self._pictures:
            self._pictures[path] = self._load(path)
        self._pictures[path].draw()
        self._window.flip()
        self._core.wait(seconds)

    def ask(self, text: str, keys: Sequence[str]) -> tuple[str, float]:
        """Return the key of these that was pressed, and after how many seconds."""
        self._show_text(text)
        start = self._core.getTime()
        key = self._keys([*keys, *(f"num_{key}" for key in keys)])
        return key.removeprefix("num_"), self._core.getTime() - start

    def close(self) -> None:
        """Give the screen back."""
        self._window.close()

    def _load(self, path: Path) -> Any:
        if path.suffix == ".npy":  # 16 bits: as floats from -1 to 1, the lowest row first
            import numpy as np

            levels = np.load(path, allow_pickle=False)
            image: Any = np.flipud(levels.astype(np.float32) / 65535 * 2 - 1)
            height, width = levels.shape[:2]
        else:
            from PIL import Image

            image = str(path)
            with Image.open(path) as file:
                width, height = file.size
        size = (width * self._zoom, height * self._zoom)
        return self._visual.ImageStim(
            self._window, image=image, size=size, units="pix", interpolate=False
        )

    def _show_text(self, text: str) -> None:
        self._text.text = text
        self._text.draw()
        self._window.flip()

    def _keys(self, allowed: Sequence[str] | None) -> str:
        self._event.clearEvents()
        keys = None if allowed is None else [*allowed, "escape"]
        (key, *_) = self._event.waitKeys(keyList=keys)
        if key == "escape":
            raise StoppedError
        return str(key)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what the experiment is: intervals, seconds, zoom, the manifest's id."""
    facts = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    return dict(facts)


def constant_trials(conditions: Sequence[dict[str, Any]], repeats: int, seed: int) -> Iterator[Any]:
    """Yield every condition ``repeats`` times in random order, with what takes the answer."""
    from psychopy import data

    handler = data.TrialHandler(list(conditions), nReps=repeats, method="random", seed=seed)
    for condition in handler:
        yield condition, lambda correct: handler.addData("correct", int(correct))


def quest_handlers(
    conditions: Sequence[dict[str, Any]], trials: int, intervals: int
) -> dict[str, tuple[Any, dict[float, dict[str, Any]]]]:
    """Return a QUEST+ a distortion and sign, and its conditions by log10 of the amplitude."""
    from psychopy import data

    groups: dict[str, dict[float, dict[str, Any]]] = {}
    for condition in conditions:
        name = f"{condition['distortion']} {condition['sign']}"
        groups.setdefault(name, {})[round(math.log10(float(condition["alpha"])), 6)] = condition
    handlers = {}
    for name, by_level in groups.items():
        levels = sorted(by_level)
        margin = max((levels[-1] - levels[0]) / 4, 0.25)
        low, high = levels[0] - margin, levels[-1] + margin
        handlers[name] = (
            data.QuestPlusHandler(
                nTrials=trials,
                intensityVals=levels,
                thresholdVals=[low + (high - low) * i / 40 for i in range(41)],
                slopeVals=[1.0, 2.0, 3.5, 6.0],
                lowerAsymptoteVals=[1 / intervals],
                lapseRateVals=[0.01, 0.05],
                responseVals=("Yes", "No"),
                psychometricFunc="weibull",
                stimScale="log10",
                name=name,
            ),
            by_level,
        )
    return handlers


def quest_trials(
    conditions: Sequence[dict[str, Any]], trials: int, intervals: int, seed: int
) -> Iterator[Any]:
    """Yield the conditions that QUEST+ chooses, distortions in random order."""
    handlers = quest_handlers(conditions, trials, intervals)
    order = [name for name in handlers for _ in range(trials)]
    random.Random(seed).shuffle(order)
    for name in order:
        handler, by_level = handlers[name]
        wanted = float(handler.next())
        level = min(by_level, key=lambda known: abs(known - wanted))
        yield (
            by_level[level],
            lambda correct, handler=handler, level=level: handler.addResponse(
                "Yes" if correct else "No", intensity=level
            ),
        )


def show_trial(
    screen: Screen, folder: Path, condition: dict[str, Any], target: int, facts: dict[str, Any]
) -> tuple[str, float]:
    """Show one trial, the changed picture in interval ``target`` from 1; return key and seconds."""
    intervals, seconds = int(facts["intervals"]), float(facts["duration"])
    for interval in range(1, intervals + 1):
        screen.blank(0.5)
        name = condition["file"] if interval == target else condition["reference"]
        screen.picture(folder / str(name), seconds)
    keys = [str(i) for i in range(1, intervals + 1)]
    return screen.ask(f"Which one was different?   {'   '.join(keys)}", keys)


def run(
    screen: Screen,
    observer: str,
    *,
    folder: Path = HERE,
    method: str = "constant",
    repeats: int = 10,
    trials: int = 40,
    seed: int | None = None,
    output: Path | None = None,
) -> Path:
    """Run the experiment; return the table of trials, complete up to the last answer."""
    from psychopy import data

    facts = read_facts(folder)
    conditions = [dict(row) for row in data.importConditions(str(folder / "conditions.csv"))]
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    sides = random.Random(seed + 1)
    intervals = int(facts["intervals"])
    chosen: Iterator[Any]
    if method == "quest":
        chosen = quest_trials(conditions, trials, intervals, seed)
    else:
        chosen = constant_trials(conditions, repeats, seed)
    path = output or folder / f"trials-{observer}-{time.strftime('%Y%m%d-%H%M%S')}.csv"
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        try:
            screen.tell(
                f"You will see {intervals} pictures one after another; one of them is different.\n"
                f"Press its number, 1 to {intervals}. Guess when you do not know.\n\n"
                "Press a key to begin, Escape to end."
            )
            for number, (condition, answer) in enumerate(chosen, 1):
                target = sides.randint(1, intervals)
                key, seconds = show_trial(screen, folder, condition, target, facts)
                correct = key == str(target)
                answer(correct)
                writer.writerow({
                    "observer": observer,
                    "trial": number,
                    "stimulus": condition["stimulus"],
                    "correct": int(correct),
                    "response": key,
                    "interval": target,
                    "rt": f"{seconds:.4f}",
                    "manifest": facts["manifest"],
                })  # fmt: skip
                file.flush()
            screen.tell("That was all. Thank you!")
        except StoppedError:
            pass
    return path


def main() -> None:
    """Read the command line, or ask by a dialog who observes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--observer", help="a code, not a name; asked for where it is missing")
    parser.add_argument("--method", choices=["constant", "quest"], default="constant")
    parser.add_argument("--repeats", type=int, default=10, help="constant: of every stimulus")
    parser.add_argument("--trials", type=int, default=40, help="quest: of every distortion")
    parser.add_argument("--seed", type=int, help="of the order")
    parser.add_argument("--windowed", action="store_true")
    options = parser.parse_args()
    observer = options.observer
    if not observer:
        from psychopy import gui

        asked: dict[str, Any] = {
            "observer": "",
            "method": ["constant", "quest"],
            "repeats": 10,
            "trials": 40,
        }
        if not gui.DlgFromDict(asked, title="Experiment").OK:
            return
        observer, options.method = str(asked["observer"]), str(asked["method"])
        options.repeats, options.trials = int(asked["repeats"]), int(asked["trials"])
    observer = "".join(c for c in observer if c.isalnum() or c in "-_") or "observer"
    screen = PsychoPyScreen(int(read_facts(HERE)["zoom"]), options.windowed)
    try:
        print(
            run(
                screen,
                observer,
                method=options.method,
                repeats=options.repeats,
                trials=options.trials,
                seed=options.seed,
            )
        )
    finally:
        screen.close()


if __name__ == "__main__":
    main()
