"""Time and numbers of ``Eigendistortion`` beside plenoptic's, at equal settings.

    OMP_NUM_THREADS=1 python benchmarks/eigendistortion.py [--quick] [--repeats 3]

Speed: both solve the same problem one after the other, ``repeats`` times, from the constructor to
the result; the ratio is the median over the pairs, in seconds of the processor (what other
processes take does not count; ``--wall`` takes the clock). ``power`` makes the same number of
iterations in both (``stop_criterion`` zero) but for the rows ``to the end``, which run by the
default stop rule. Agreement: the eigenvalues of both ``exact`` on plenoptic's eight models in
float64, relative to each; below 1e-9 · λmax to λmax, as plenoptic squares J. Ends with status 1
when a row is slower than plenoptic or does not agree to 1e-5.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
import warnings
from pathlib import Path

import plenoptic as po
import torch

from eigenexp import Eigendistortion

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.compat.plenoptic_models import MODELS

POWER = {"method": "power", "stop_criterion": 0.0}
METHODS = {
    "power, 3 iterations": {**POWER, "max_iter": 3},
    "power, 20 iterations": {**POWER, "max_iter": 20},
    "power, to the end": {"method": "power", "max_iter": 200},
    "randomized_svd": {"method": "randomized_svd"},
    "exact": {"method": "exact"},
}
SMALL, LARGE, MOST_FOR_EXACT = 16, 128, 32


def colour_net():
    """Return two convolutions with a ReLU between them, for colour pictures."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, stride=2)
    )


def few_responses():
    """Return a linear model of ten responses."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SMALL**2, 10))


def fixed(make, dtype=torch.float32):
    """Return a model that can be solved for."""
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    po.remove_grad(model)
    return model


def problems(quick):
    """Yield (model's name, model, picture)."""
    gray, colour = po.data.einstein(), po.data.color_wheel()
    sizes = (SMALL,) if quick else (SMALL, MOST_FOR_EXACT, LARGE)
    timed = ("Identity", "Linear", "LuminanceGainControl", "OnOff")
    for name in timed if quick else MODELS:
        for size in sizes:
            yield name, fixed(MODELS[name]), gray[..., 64 : 64 + size, 64 : 64 + size].contiguous()
    yield "Linear to 10", fixed(few_responses), gray[..., 64 : 64 + SMALL, 64 : 64 + SMALL]
    for size in sizes:
        yield "ColourNet", fixed(colour_net), colour[..., 64 : 64 + size, 64 : 64 + size]


def cases(quick):
    """Yield (name, model, picture, method, k); long ones on small pictures alone."""
    for name, model, picture in problems(quick):
        side = picture.shape[-1]
        for method in METHODS:
            if method == "exact":
                if side <= MOST_FOR_EXACT:
                    yield name, model, picture, method, None
            elif method == "power, to the end":
                if side == SMALL and not quick:
                    yield name, model, picture, method, 1
            else:
                for k in (1, 4) if side <= MOST_FOR_EXACT else (1,):
                    yield name, model, picture, method, k


def seconds(kind, picture, model, settings, clock):
    """Return the time of one solve, linearisation included; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        begin = clock()
        kind(picture, model).synthesize(**settings)
        return clock() - begin


def time_case(picture, model, settings, repeats, clock):
    """Return the medians of both and of their ratio, or None where plenoptic fails."""
    pairs = []
    for _ in range(repeats):
        po.set_seed(0)
        try:
            theirs = seconds(po.Eigendistortion, picture, model, settings, clock)
        except torch.linalg.LinAlgError:
            return None
        pairs.append((theirs, seconds(Eigendistortion, picture, model, settings, clock)))
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return theirs, ours, statistics.median(t / o for t, o in pairs)


def disagreement(make):
    """Return the largest relative difference between the eigenvalues of both ``exact``."""
    model = fixed(make, torch.float64)
    picture = po.data.einstein()[..., 100:116, 100:116].to(torch.float64)
    values = []
    for kind in (po.Eigendistortion, Eigendistortion):
        eig = kind(picture, model)
        eig.synthesize("exact")
        values.append(eig.eigenvalues)
    theirs, ours = values
    return float(((ours - theirs).abs() / theirs.clamp(min=1e-9 * float(theirs[0]))).max())


def main():
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="pairs of solves a row")
    parser.add_argument("--quick", action="store_true", help="small pictures and fewer models")
    parser.add_argument("--wall", action="store_true", help="measure by the clock on the wall")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    clock = time.perf_counter if chosen.wall else time.process_time
    slower = different = rows = 0
    print(f"{'model':29} {'picture':>8}  {'method':21} {'k':>3} "
          f"{'plenoptic':>11} {'eigenexp':>11} {'ratio':>8}")  # fmt: skip
    for name, model, picture, method, k in cases(chosen.quick):
        settings = METHODS[method] if k is None else {**METHODS[method], "k": k}
        size = "×".join(str(side) for side in picture.shape[1:] if side > 1)
        row = f"{name:29} {size:>8}  {method:21} {k or 'all':>3} "
        times = time_case(picture, model, settings, chosen.repeats, clock)
        if times is None:
            print(f"{row} plenoptic fails: NaN or inf in its matrix", flush=True)
            continue
        theirs, ours, ratio = times
        rows += 1
        slower += ratio < 1
        print(f"{row}{1e3 * theirs:8.1f} ms {1e3 * ours:8.1f} ms {ratio:7.2f}×  "
              f"{'PASS' if ratio >= 1 else 'FAIL'}", flush=True)  # fmt: skip
    print(f"\n{'exact in float64, 16×16':40} {'largest relative difference':>27}")
    for name, make in MODELS.items():
        worst = disagreement(make)
        different += not worst <= 1e-5
        print(f"{name:40} {worst:27.1e}  {'PASS' if worst <= 1e-5 else 'FAIL'}", flush=True)
    print(f"\nslower than plenoptic: {slower} of {rows} rows")
    print(f"not in agreement to 1e-5: {different} of {len(MODELS)} models")
    return 1 if slower or different else 0


if __name__ == "__main__":
    sys.exit(main())
