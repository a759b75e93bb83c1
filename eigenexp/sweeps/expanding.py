"""From ``model=ln,lg solver.k=range(1,4)`` to the list of jobs, by Hydra's own grammar."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from eigenexp.errors import ConfigError
from eigenexp.experiments.config import explained, hydra_session

__all__ = ["expand", "split_hydra"]


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Return the jobs of a sweep: every combination, in the order Hydra's basic sweeper has.

    Parameters
    ----------
    overrides
        ``key=a,b``, ``key=range(1,5)``, ``key=choice(…)``, ``key=glob(*)``, or one value.

    Raises
    ------
    ConfigError
        When one cannot be parsed, or sweeps an interval.
    """
    choices: dict[str, list[str]] = {}
    for override in parse(overrides):
        key = override.get_key_element()
        if not override.is_sweep_override():
            value = "" if override.is_delete() else override.get_value_element_as_str()
            choices[key] = [key if override.is_delete() and not value else f"{key}={value}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(
                f"{key}: expected a list, range or glob to sweep, got an interval; write the "
                f"values, {key}=1,2,4"
            )
    return [list(job) for job in itertools.product(*choices.values())]


def split_hydra(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of Hydra itself (``hydra/launcher=…``, ``hydra.…``), and the others."""
    keys = [override.get_key_element().lstrip("+~") for override in parse(overrides)]
    own = [k.startswith(("hydra/", "hydra.")) for k in keys]
    pairs = list(zip(own, overrides, strict=True))
    return [o for is_hydra, o in pairs if is_hydra], [o for is_hydra, o in pairs if not is_hydra]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Return the overrides parsed; a mistake is one line."""
    with hydra_session() as hydra:
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        try:
            return list(parser.parse_overrides(list(overrides)))
        except HydraException as error:
            raise explained(error, overrides) from error
