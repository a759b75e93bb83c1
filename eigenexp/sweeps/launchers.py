"""Hydra's launchers: which there are, what each needs installed, how many threads its jobs take."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eigenexp.errors import ConfigError
from eigenexp.experiments.config import (
    CONFIG_NAME,
    explained,
    hydra_session,
    register_schemas,
    search_path,
)
from eigenexp.sweeps.resources import visible_gpus

__all__ = ["EXTRAS", "Launch", "available_cores", "check_launcher", "job_gpus", "job_threads"]

EXTRAS = {
    "basic": ("hydra", ""),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("ray", "ray"),
}
"""The launchers by name: the package each needs, and the extra that installs it."""

_RAY_TARGET = "eigenexp.sweeps.ray_launcher.RayLauncher"
_RAY_CONFIG = {
    "_target_": _RAY_TARGET,
    # Arguments of ray.init and of ray.remote, under the names hydra-ray-launcher gives them.
    "ray": {
        "init": {"address": None, "num_cpus": None, "num_gpus": None},
        "remote": {"num_cpus": 1, "num_gpus": None},
    },
}


def check_launcher(hydra_overrides: Sequence[str]) -> str:
    """Return the launcher chosen by ``hydra/launcher=…``.

    Raises
    ------
    ConfigError
        When it is not installed, unknown, or a sweeper is chosen that picks its own jobs.
    """
    name = "basic"
    for override in hydra_overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in ("hydra/sweeper", "hydra.sweeper") and value != "basic":
            raise ConfigError(
                f"{key}: expected basic, got {value!r}; a sweep lists its jobs before it starts"
            )
        if key.lstrip("+") == "hydra/launcher":
            name = value
    if name not in EXTRAS:
        near = difflib.get_close_matches(name, EXTRAS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"hydra/launcher: expected one of {', '.join(EXTRAS)}, got {name!r}{hint}"
        )
    package, extra = EXTRAS[name]
    if not _installed(package):
        raise ConfigError(
            f"hydra/launcher={name}: expected the package {package.rpartition('.')[2]}, which is "
            f"not installed; pip install 'eigenexp[{extra}]'"
        )
    return name


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def available_cores() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def job_threads(name: str, launcher: Any, jobs: int) -> int | None:
    """Return the threads of a job so that those running at once share the cores of this machine.

    Parameters
    ----------
    name, launcher
        The launcher and its configuration.
    jobs
        How many are launched.

    Returns
    -------
    int or None
        ``None`` where one job has the machine (``basic``) or the scheduler says it
        (``submitit_slurm``: ``SLURM_CPUS_PER_TASK``).
    """
    cores = available_cores()
    if name == "joblib":
        asked = int(launcher.get("n_jobs", -1))
        workers = asked if asked > 0 else max(1, cores + 1 + asked)
        return max(1, cores // min(workers, jobs))
    if name == "submitit_local":  # all at once
        return max(1, int(launcher.get("cpus_per_task") or cores // jobs))
    if name == "ray":
        remote = launcher.get("ray", {}).get("remote", {})
        return max(1, int(remote.get("num_cpus", 1)))
    return None


def job_gpus(name: str) -> tuple[str, ...]:
    """Return the GPUs that jobs on this machine share out; of launchers that do not do it."""
    gpus = visible_gpus() if name in ("joblib", "submitit_local") else ()
    return gpus if len(gpus) > 1 else ()


class Launch:
    """Hydra made ready to launch jobs of a sweep.

    Parameters
    ----------
    name
        A key of :data:`EXTRAS`.
    hydra_overrides
        ``hydra.launcher.…=…`` and the like.
    folder
        Where launchers keep their own files.
    """

    def __init__(self, name: str, hydra_overrides: Sequence[str], folder: str) -> None:
        self.name = name
        register_schemas()
        Plugins.instance()  # registers the launchers' configurations
        ConfigStore.instance().store(
            group="hydra/launcher", name="ray", node=_RAY_CONFIG, provider="eigenexp"
        )
        own = [
            f"hydra.sweep.dir={_quoted(folder)}",
            "hydra.sweep.subdir=launcher",
            "hydra/hydra_logging=none",
            "hydra/job_logging=none",
            "hydra.output_subdir=null",
            "hydra.job.chdir=false",
        ]
        self._overrides = [*hydra_overrides, *own, *search_path()]
        with hydra_session() as hydra:
            try:
                self.config: DictConfig = hydra.compose_config(
                    config_name=CONFIG_NAME,
                    overrides=self._overrides,
                    run_mode=RunMode.MULTIRUN,
                    with_log_configuration=False,
                )
            except (HydraException, OmegaConfBaseException) as error:
                raise explained(error, self._overrides) from error
            self._loader = hydra.config_loader
        self.settings: Any = OmegaConf.to_container(self.config.hydra.launcher, resolve=False)

    def run(self, task: Callable[[Any], Any], jobs: Sequence[Sequence[str]]) -> None:
        """Launch ``jobs``, each a list of overrides, and wait for them; results are on disk.

        The context that launchers take holds Hydra's callbacks, which have no public name.

        Raises
        ------
        Exception
            Whatever the launcher raises when it cannot start, or loses, a job.
        """
        from hydra._internal.callbacks import Callbacks

        context = HydraContext(config_loader=self._loader, callbacks=Callbacks(self.config))
        before = HydraConfig.instance().cfg
        # Launchers' settings refer to Hydra's own, as ${hydra:…}.
        HydraConfig.instance().set_config(self.config)
        try:
            launcher = self._launcher(context, task)
            launcher.launch([list(job) for job in jobs], initial_job_idx=0)
        finally:
            HydraConfig.instance().cfg = before

    def _launcher(self, context: HydraContext, task: Callable[[Any], Any]) -> Any:
        if self.config.hydra.launcher.get("_target_") != _RAY_TARGET:
            return Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=self.config
            )
        from eigenexp.sweeps.ray_launcher import RayLauncher

        launcher = RayLauncher(self.config.hydra.launcher.ray)
        launcher.setup(hydra_context=context, task_function=task, config=self.config)
        return launcher


def _quoted(text: str) -> str:
    """Return ``text`` as one value of Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
