"""Plain containers of anything."""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np
import torch

from eigenexp.storage.plain import plain


def test_plain_reaches_every_container():
    class Colour(enum.Enum):
        RED = "red"

    value = {
        1: (np.float32(0.5), np.int64(2), np.array([1, 2])),
        "p": Path("a/b"),
        "e": Colour.RED,
        "s": {3, 1},
        "b": True,
        "o": torch.float32,
    }
    assert plain(value) == {
        "1": [0.5, 2, [1, 2]],
        "p": "a/b",
        "e": "red",
        "s": [1, 3],
        "b": True,
        "o": "torch.float32",
    }
    assert type(plain(np.float64(1.0))) is float
