"""The pictures that scikit-image brings along, by the names of its functions."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

__all__ = ["ALIASES", "bundled_pictures", "bundled_sha256", "read_bundled"]

# Those whose wheel holds one file of one picture that means something without its alpha, with the
# SHA-256 of that file: it stands in records and is the identity of a mean since the first release.
_FILE_SHA256 = {
    "astronaut": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "cell": "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
    "checkerboard": "3e51870774515af4d07d820bd8827364c70839bf9b573c746e485095e893df90",
    "chelsea": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "clock": "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
    "coffee": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "coins": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "colorwheel": "7d2df993de2b4fa2a78e04e5df8050f49a9c511aa75e59ab3bd56ac9c98aef7e",
    "grass": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "immunohistochemistry": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "logo": "f2c57fe8af089f08b5ba523d95573c26e62904ac5967f4c8851b27d033690168",
    "microaneurysms": "a1e1be59aa447f8ce082f7fa809997ab369a2b137cb6c4202abc647c7ccf6456",
    "moon": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "page": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
    "retina": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "shepp_logan_phantom": "552ff698167aa402cceb17981130607a228a0a0aa7c519299eaa4d5f301ba36c",
    "text": "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1",
}
ALIASES = {"cat": "chelsea"}


def bundled_pictures() -> list[str]:
    """Return the names of scikit-image's pictures that are installed here, sorted.

    scikit-image offers more, which it would download; those are not listed.
    """
    return sorted(_FILE_SHA256) if importlib.util.find_spec("skimage") else []


def bundled_sha256(name: str) -> str:
    """Return the SHA-256 of the file in scikit-image's wheel."""
    return _FILE_SHA256[name]


def read_bundled(name: str) -> np.ndarray[Any, Any]:
    """Return a picture by scikit-image's function of that name: ``(H, W)`` or ``(H, W, C)``."""
    import skimage.data

    return np.asarray(getattr(skimage.data, name)())
