"""Seconds of each method against plenoptic's at equal settings, in pairs.

    OMP_NUM_THREADS=1 python benchmarks/eigendistortion.py [--repeats 5]

Both solve the same problem one after the other, ``repeats`` times, and the medians of the pairs are
compared. ``power`` makes the same number of iterations in both (``stop_criterion`` zero). Ends with
status 1 when any method is slower than plenoptic's.
"""

import argparse
import statistics
import sys
import time
import warnings

import plenoptic as po
import torch

from eigenexp import Eigendistortion

SETTINGS = {
    "power, k=1": {"method": "power", "k": 1, "max_iter": 20, "stop_criterion": 0.0},
    "power, k=4": {"method": "power", "k": 4, "max_iter": 5, "stop_criterion": 0.0},
    "randomized_svd, k=3": {"method": "randomized_svd", "k": 3},
    "exact": {"method": "exact"},
}


class ColourNet(torch.nn.Module):
    """Two convolutions with a ReLU between them, for colour pictures."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 16, 3, stride=2),
        )

    def forward(self, x):
        """Return the second layer's response."""
        return self.layers(x)


def problems():
    """Yield (name, model, picture, methods)."""
    gray, colour = po.data.einstein(), po.data.color_wheel()
    few = [name for name in SETTINGS if name != "exact"]
    for name in ("LuminanceGainControl", "OnOff"):
        model = getattr(po.models, name)((31, 31), pretrained=True, cache_filt=True).eval()
        po.remove_grad(model)
        yield f"{name} 24²", model, gray[..., 100:124, 100:124], list(SETTINGS)
        yield f"{name} 128²", model, gray[..., 64:192, 64:192], few
    torch.manual_seed(0)
    net = ColourNet().eval()
    po.remove_grad(net)
    yield "ColourNet 3×24²", net, colour[..., 100:124, 100:124], list(SETTINGS)
    yield "ColourNet 3×128²", net, colour[..., 64:192, 64:192], few


def seconds(kind, picture, model, settings):
    """Return the time of one solve, linearisation included."""
    begin = time.perf_counter()
    kind(picture, model).synthesize(**settings)
    return time.perf_counter() - begin


def main():
    """Print one line a problem and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    slower = 0
    print(f"{'problem':26} {'method':22} {'plenoptic':>10} {'eigenexp':>10} {'ratio':>7}")
    for name, model, picture, methods in problems():
        for method in methods:
            pairs = []
            for _ in range(repeats):
                po.set_seed(0)
                theirs = seconds(po.Eigendistortion, picture, model, SETTINGS[method])
                pairs.append((theirs, seconds(Eigendistortion, picture, model, SETTINGS[method])))
            theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(t / o for t, o in pairs)
            slower += ratio < 1
            print(f"{name:26} {method:22} {theirs:9.3f}s {ours:9.3f}s {ratio:6.2f}×")
    print("slower than plenoptic:", slower)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
