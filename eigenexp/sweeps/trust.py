"""What a sweep's files may ask for that somebody else may have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eigenexp.errors import ConfigError
from eigenexp.experiments.config import compose_config, plain_config
from eigenexp.experiments.resuming import saved_settings

__all__ = ["check_sweep_trusted"]

_LAUNCHER_SETTINGS = (
    *("n_jobs", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "nodes"),
    *("mem_gb", "partition", "array_parallelism", "ray.remote.num_cpus", "ray.remote.num_gpus"),
)
"""Settings of launchers that start nothing but our jobs."""


def check_sweep_trusted(manifest: Mapping[str, Any], given: Sequence[str]) -> None:
    """Refuse a sweep's files that would run code, read this machine's secrets, or send them.

    Parameters
    ----------
    manifest
        Of the sweep.
    given
        Overrides that a person gives now; they may say anything.

    Raises
    ------
    ConfigError
        Naming the setting, and how to allow it.
    """
    hint = "pass --trust if you know where the sweep comes from"
    usual = {"hydra/launcher", *(f"hydra.launcher.{name}" for name in _LAUNCHER_SETTINGS)}
    for override in manifest["hydra"]:
        key, _, value = override.lstrip("+").partition("=")
        if (key not in usual or "${" in value) and override not in given:
            raise ConfigError(
                f"{key}: expected only the number and size of jobs in a saved sweep, got "
                f"{override!r}; give it again, or {hint}"
            )
    for overrides in manifest["jobs"]:
        for override in overrides:
            if "${" in override or override.lstrip("+~").startswith("hydra"):
                raise ConfigError(
                    f"{override!r}: expected plain settings of a run in a saved sweep; {hint}"
                )
        saved_settings(plain_config(compose_config(overrides)))
    saved_settings({**plain_config(compose_config()), "logger": manifest["logger"]})
