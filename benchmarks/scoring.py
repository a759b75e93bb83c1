"""What intervals of D, numbers of trials and posteriors over models are worth, by simulation.

    python benchmarks/scoring.py [--experiments 200] [--engine grid,psignifit] [--out table.json]

Observers are simulated with a known truth: 2AFC, six levels from half to four times the threshold,
1 % lapses, D = 4.417, that of OnOff at a crop of camera. The ideal width of a 95 % interval is 3.92
Cramér-Rao deviations of D where exponents and lapses are known. Then four models answer on their
principal pair, and it is counted how often the true one has the highest posterior.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

import eigenexp as ee

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.scoring.experiments import MODELS, D, differences, ideal_deviation, principal_design


def of_differences(trials: int, experiments: int, engine: str) -> dict[str, float | str]:
    """Return how intervals of D fared."""
    began = time.process_time()
    found = differences(trials, experiments, seed=1, engine=engine)
    seconds = time.process_time() - began
    values = np.array([one.value for one in found])
    width = float(np.mean([one.high - one.low for one in found]))
    return {
        "engine": engine,
        "trials": trials,
        "experiments": experiments,
        "covered": sum(one.low <= D <= one.high for one in found),
        "deviation": float(values.std()),
        "bias": float(values.mean() - D),
        "width": width,
        "width/ideal": width / (3.92 * ideal_deviation(trials)),
        "cpu seconds": seconds / experiments,
    }


def of_models(trials: int, experiments: int) -> dict[str, float]:
    """Return how often the true one of four models has the highest posterior."""
    design = principal_design()
    scoring = ee.scoring
    observers = [scoring.Observer(p, scoring.fitting_gain(design, p)) for p in design.predictions]
    told = max(one.trials or 0 for one in scoring.separate(design, observers))
    found = 0
    for i in range(experiments):
        true = observers[i % len(MODELS)]
        models = scoring.score(scoring.simulate(design, [true], trials, seed=i), design).models
        found += bool(models) and models[0].model == true.prediction.model
    return {"trials": trials, "experiments": experiments, "found": found, "told enough": told}


def main() -> None:
    """Print one table for thresholds, one for models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--trials", default="100,200,400")
    parser.add_argument("--engine", default="grid", help="grid, psignifit, or both by a comma")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    rows = []
    for engine in options.engine.split(","):
        for trials in map(int, options.trials.split(",")):
            row = of_differences(trials, options.experiments, engine)
            rows.append(row)
            print(
                f"{engine:9} {trials:4} trials a distortion: {row['covered']} of "
                f"{row['experiments']} intervals contain D, SD {row['deviation']:.3f}, bias "
                f"{row['bias']:+.3f}, width {row['width']:.3f} = {row['width/ideal']:.2f} of the "
                f"ideal, {row['cpu seconds']:.3f} s",
                flush=True,
            )
    models = [of_models(200, 100)]
    for one in models:
        print(
            f"models    {one['trials']:4} trials a distortion: the true one of four first in "
            f"{one['found']} of {one['experiments']}; told to be enough for 95 %: "
            f"{one['told enough']}"
        )
    if options.out is not None:
        options.out.write_text(json.dumps({"differences": rows, "models": models}, indent=2))


if __name__ == "__main__":
    main()
