"""Hydra jobs as Ray tasks.

hydra-ray-launcher 1.2.2 does the same, but pins cloudpickle below 3 (3.1 is current, and what Ray
and MLflow take) and brings boto3 and ``ray[default]`` for clusters of its own making. Its settings,
``hydra.launcher.ray.init`` and ``hydra.launcher.ray.remote``, are those here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = ["RayLauncher"]


class RayLauncher(Launcher):
    """Launch every job as a Ray task, on this machine or on the cluster ``ray.init`` reaches.

    Parameters
    ----------
    ray
        ``init``: arguments of ``ray.init`` (``address=auto``); ``remote``: of ``ray.remote``
        (``num_cpus``, ``num_gpus``), for each job.
    """

    def __init__(self, ray: DictConfig) -> None:
        super().__init__()
        self._ray = ray

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: Callable[[Any], Any],
        config: DictConfig,
    ) -> None:
        """Take what Hydra hands a launcher."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and wait for all of them; a lost one raises after the others are over."""
        import ray

        setup_globals()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        started = not ray.is_initialized()
        if started:
            given = _given(self._ray.init)
            own = {} if "address" in given else {"include_dashboard": False}
            ray.init(**{"logging_level": "ERROR", "log_to_driver": False, **own, **given})
        try:
            # A job writes down its own failures; one that died is for a person to look at.
            run = ray.remote(**{"max_retries": 0, **_given(self._ray.remote)})(_run)
            state = Singleton.get_state()
            waiting = []
            for number, overrides in enumerate(job_overrides, start=initial_job_idx):
                config = self._context.config_loader.load_sweep_config(
                    self._config, list(overrides)
                )
                with open_dict(config):
                    config.hydra.job.id = f"ray-{number}"
                    config.hydra.job.num = number
                waiting.append(run.remote(self._context, config, self._task, state))
            ray.wait(waiting, num_returns=len(waiting))
            return [ray.get(done) for done in waiting]
        finally:
            if started:
                ray.shutdown()


def _given(settings: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(settings, resolve=True)
    return {key: value for key, value in values.items() if value is not None}


def _run(context: HydraContext, config: DictConfig, task: Any, state: Any) -> JobReturn:
    setup_globals()
    Singleton.set_state(state)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
