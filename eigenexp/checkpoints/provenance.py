"""Where a checkpoint came from: versions, git commit, fingerprints of model and picture."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata as importlib_metadata
from typing import Any

import torch
from torch import Tensor, nn

from eigenexp.operators.calling import uncompiled
from eigenexp.operators.responses import response_parts
from eigenexp.storage.hashing import tensor_sha256
from eigenexp.storage.plain import plain

__all__ = [
    "SCHEMA_VERSION",
    "checkpoint_metadata",
    "environment",
    "git_state",
    "model_fingerprint",
]

SCHEMA_VERSION = 1
_PACKAGES = ("eigenexp", "torch", "lightning", "mlflow")


def checkpoint_metadata(
    *,
    model: Mapping[str, Any] | None = None,
    picture: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    step: int | None = None,
    num_products: int | None = None,
    eigenvalues: Iterable[float] | Tensor | None = None,
    residuals: Iterable[float] | Tensor | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Return the facts kept in every checkpoint: plain containers, loadable with ``weights_only``.

    Cheap enough for every checkpoint: what cannot change in a process is looked up once.

    Parameters
    ----------
    model
        From :func:`model_fingerprint`.
    picture
        ``Picture.record``; must hold ``sha256``.
    config
        The resolved configuration.
    dtype, device
        Of the solve.
    step, num_products, eigenvalues, residuals
        How far the solve is; residuals absolute.
    extra
        More facts, under their own names.
    """
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "model": model,
        "picture": picture,
        "config": config,
        "dtype": None if dtype is None else str(dtype),
        "device": None if device is None else str(device),
        "step": step,
        "num_products": num_products,
        "eigenvalues": eigenvalues,
        "residuals": residuals,
        **extra,
    }
    return {key: plain(value) for key, value in facts.items() if value is not None}


def environment() -> dict[str, Any]:
    """Return versions, platform, threads and, inside a repository, the git commit."""
    facts: dict[str, Any] = {
        "versions": {**_versions()},
        "platform": _platform(),
        "threads": torch.get_num_threads(),
    }
    git = git_state(os.getcwd())
    if git is not None:
        facts["git"] = {**git}
    return facts


@functools.cache
def _versions() -> dict[str, str]:
    """Read versions from the installed packages' records: imports none of them."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            if name == "eigenexp":
                import eigenexp

                versions[name] = eigenexp.__version__
    versions["torch"] = str(torch.__version__)
    return versions


@functools.cache
def _platform() -> str:
    return platform.platform(aliased=True)


@functools.lru_cache(maxsize=8)
def git_state(folder: str) -> dict[str, Any] | None:
    """Return ``{"commit", "dirty"}`` of the repository around ``folder``, or ``None`` outside one.

    Looked up once a process and folder. Hooks and monitors the repository configures do not run.
    """
    safe = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=" + os.devnull)
    head = _git(folder, *safe, "rev-parse", "--verify", "HEAD")
    if not head:
        return None
    status = _git(folder, *safe, "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if status is None else bool(status)}


def _git(folder: str, *arguments: str) -> str | None:
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            env=environ,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def model_fingerprint(
    model: nn.Module | Callable[..., Any],
    image: Tensor,
    response: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Return what tells whether two models are the same function at a picture.

    Parameters
    ----------
    model
        The model, in the state in which it is solved.
    image
        ``(1, C, H, W)`` picture, in the model's dtype and device.
    response
        f(image), any shape, where at hand (``operator.response``); computed otherwise.
    dtype
        Hash the weights as they are in this precision: tells a model that was solved in float32
        and is now held in float64. The output, which rounds differently, is then only sketched.

    Returns
    -------
    dict
        ``class``; ``weights_sha256`` of parameters and buffers and ``num_parameters`` (modules
        only); ``output_sha256``; ``output_sketch``, four sums of the output that survive the
        rounding differences of another processor, where a hash does not.
    """
    kind = type(model) if isinstance(model, nn.Module) else model
    name = getattr(kind, "__qualname__", None) or type(model).__qualname__
    module = getattr(kind, "__module__", None) or type(model).__module__
    facts: dict[str, Any] = {"class": f"{module}.{name}"}
    if isinstance(model, nn.Module):
        digest = hashlib.sha256()
        tensors = [*model.named_parameters(), *model.named_buffers()]
        for key, tensor in sorted(tensors, key=lambda item: item[0]):
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            digest.update(f"{key} {tensor_sha256(tensor)}\n".encode())
        facts["weights_sha256"] = digest.hexdigest()
        facts["num_parameters"] = sum(p.numel() for p in model.parameters())
    if response is None:
        with torch.no_grad(), uncompiled():
            parts = response_parts(model(image))
        response = torch.cat([part.reshape(-1) for part in parts])
    output = response.detach().cpu().reshape(-1)
    if dtype is None:
        facts["output_sha256"] = tensor_sha256(output)
    facts["output_sketch"] = _sketch(output)
    return facts


def _sketch(output: Tensor) -> list[float]:
    values = torch.view_as_real(output).reshape(-1) if output.is_complex() else output
    y = values.double()
    angle = torch.arange(len(y), dtype=torch.float64)
    waves = (torch.ones_like(y), torch.cos(angle), torch.sin(0.7 * angle))
    return [float(torch.linalg.vector_norm(y)), *(float(y @ wave) for wave in waves)]
