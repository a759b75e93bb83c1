"""Settings composed from the groups in ``conf/`` and a person's words, typed and checked."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eigenexp.errors import ConfigError
from eigenexp.experiments.explaining import explain, near, no_such_key, unquoted
from eigenexp.experiments.noise_schema import NOISES, GaussianConfig
from eigenexp.experiments.perturbations_schema import PERTURBATIONS, EverythingConfig
from eigenexp.experiments.schema import (
    OPEN_GROUPS,
    SCHEMAS,
    SOLVERS,
    FitConfig,
    SolverConfig,
    fold_others,
    open_schema,
    plain_config,
    typed_config,
)

__all__ = [
    "CONFIG_DIR",
    "CONFIG_NAME",
    "FitConfig",
    "compose_config",
    "explained",
    "groups",
    "hydra_session",
    "known_settings",
    "model_lines",
    "options",
    "override_config",
    "own_folder",
    "plain_config",
    "register_schemas",
    "with_own_model",
]

CONFIG_MODULE = "eigenexp.conf"
CONFIG_NAME = "fit"
CONFIG_DIR = "EIGENEXP_CONFIG_DIR"
"""Environment variable that names a folder of a person's own groups (``--config-dir``)."""


def register_schemas() -> None:
    """Make the typed schemas known to Hydra; safe to call again."""
    store = ConfigStore.instance()
    for group, name, kind in SCHEMAS:
        node = open_schema(kind) if group in OPEN_GROUPS else kind
        store.store(group=group, name=name, node=node, provider="eigenexp")


def own_folder() -> Path | None:
    """Return the folder of a person's own groups: ``--config-dir``'s, or ``./conf``, if any.

    Raises
    ------
    ConfigError
        When the one that was asked for is no folder.
    """
    named = os.environ.get(CONFIG_DIR)
    if named:
        if not Path(named).is_dir():
            raise ConfigError(f"--config-dir: expected a folder, got {named!r}, which is none")
        return Path(named).absolute()
    here = Path("conf").absolute()
    return here if any((here / group).is_dir() for group in groups()) else None


def groups() -> list[str]:
    """Return the names of the configuration groups."""
    return [entry.name for entry in files(CONFIG_MODULE).iterdir() if options_of(entry)]


def options_of(folder: Any) -> list[str]:
    """Return the names of the YAML files in a folder (a path, or a package's)."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def options(group: str) -> list[str]:
    """Return the files of a configuration group, by the names they are chosen with."""
    own = own_folder()
    mine = [] if own is None else options_of(own / group)
    return sorted({*options_of(files(CONFIG_MODULE).joinpath(group)), *mine})


@contextmanager
def hydra_session() -> Iterator[Any]:
    """Lend Hydra for one composition, leaving the caller's alone; yield its instance."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            yield GlobalHydra.instance().hydra
    finally:
        GlobalHydra.instance().hydra = before


def model_lines() -> list[str]:
    """Return a line for every model that ``model=…`` takes: its name, and what its file says."""
    own = own_folder()
    lines = []
    for name in options("model"):
        file = files(CONFIG_MODULE).joinpath("model", f"{name}.yaml")
        if not file.is_file() and own is not None:
            file = own / "model" / f"{name}.yaml"
        said = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            said.append(line.removeprefix("#").strip())
        lines.append(f"model={name:<20} {' '.join(said)}".rstrip())
    return [*lines, "model=./file.py:Class       Your own; also model=package.module.Class"]


def search_path() -> list[str]:
    """Return Hydra's override that adds the folder of a person's own groups, where there is one."""
    own = own_folder()
    if own is None:
        return []
    quoted = str(own).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['file://{quoted}']"]


def with_own_model(overrides: Sequence[str]) -> list[str]:
    """Return overrides with a model that is named by its class put as Hydra takes it.

    ``model=./mymodel.py:MyNet model.width=4`` and ``model=mypackage.nets.MyNet`` choose the group's
    ``custom`` and add the arguments. A file's path is made absolute, so that a resume finds it.
    ``model=timm.resnet18`` chooses the group's ``timm``, with a name. ``mean`` and ``std`` are
    arguments of every model.
    """
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("model=")]
    # A sweep's jobs are written with what Hydra's grammar escapes: ./mymodel.py\:MyNet.
    target = re.sub(r"\\(.)", r"\1", chosen[-1].strip("'\"")) if chosen else ""
    zoo = _ZOO.fullmatch(target)
    if zoo is None and not re.search(r"\.py:\w|^\w+(\.\w+)+$", target):
        return [_added(override, "model.mean=", "model.std=") for override in overrides]
    if ".py:" in target:
        path, _, name = target.rpartition(":")
        target = f"{Path(path).expanduser().absolute()}:{name}"
    quoted = target.replace("'", "\\'")
    others = [
        override if override.startswith("model._target_=") else _added(override, "model.")
        for override in overrides
        if not override.startswith("model=")
    ]
    if zoo is not None:
        return [f"model={zoo['package']}", f"model.name='{zoo['name']}'", *others]
    return ["model=custom", f"model._target_='{quoted}'", *others]


# A network's name, and in timm's a dot and a tag of weights; not a class, nor their own makers.
_ZOO = re.compile(
    r"(?P<package>timm|torchvision)\.(models\.)?"
    r"(?P<name>(?!create_model$|get_model$)[a-z]\w*"
    r"|(?<=timm\.)(?!(layers|data|optim|scheduler|loss|utils|models)\.)[a-z]\w*\.[a-z0-9_]+)"
)


def _added(override: str, *keys: str) -> str:
    """Return an override of one of ``keys`` as one that adds the key where it is not there."""
    return f"++{override}" if override.startswith(keys) else override


def explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Return Hydra's error as one line: key, what was got, what exists."""
    return ConfigError(explain(error, options, lambda parent: _known_keys(parent, overrides)))


def compose_config(overrides: Sequence[str] = ()) -> FitConfig:
    """Compose ``conf/fit.yaml`` with ``overrides`` and check every key, type and missing value.

    Raises
    ------
    ConfigError
        Naming the key, and the keys or options that exist.
    """
    register_schemas()
    given = with_own_model(overrides)
    with hydra_session():
        try:
            config = compose(CONFIG_NAME, overrides=[*search_path(), *given])
        except (HydraException, OmegaConfBaseException) as error:
            raise explained(error, given) from error
    return checked(config)


def checked(config: DictConfig) -> FitConfig:
    """Return a composed configuration typed, its references resolved and its open groups checked.

    Raises
    ------
    ConfigError
        Naming the key.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(
                f"{missing[0]}: expected a value, got none; add {missing[0]}=… to the command"
            )
        settings = typed_config(config)
    except OmegaConfBaseException as error:
        raise ConfigError(unquoted(error, config)) from error
    _check_others(settings)
    keep_place(settings)
    return settings


def keep_place(settings: FitConfig) -> None:
    """Turn a crop that is a size alone into one at the place that the picture's own file crops.

    ``image.crop=48`` of camera stays at the photographer's face. A picture whose file has no crop
    is cropped in its middle, by :func:`eigenexp.pictures.picture.load_picture`.
    """
    size, image = settings.image.crop, settings.image
    if not isinstance(size, int) or isinstance(size, bool) or image.source is None:
        return
    folder = files(CONFIG_MODULE).joinpath("image")
    for name in options_of(folder):
        given = yaml.safe_load(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")) or {}
        place = given.get("crop")
        if given.get("source") == image.source and isinstance(place, list):
            top, left, height, width = place
            corner = [max(0, top + (height - size) // 2), max(0, left + (width - size) // 2)]
            image.crop = [*corner, size, size]


def _check_others(settings: FitConfig) -> None:
    """Refuse what is neither a key of ours nor a person's own logger, callback or argument."""
    for group in ("logger", "callbacks"):
        for key, value in getattr(settings, group).others.items():
            if not isinstance(value, Mapping) or "_target_" not in value:
                known = _own_keys(group)
                raise ConfigError(f"{no_such_key(f'{group}.{key}', known)}; {_OWN[group]}")
    given = settings.trainer.others
    if given:
        from eigenexp.experiments.building import check_trainer_arguments  # imports Lightning

        check_trainer_arguments(given, _own_keys("trainer"))


_OWN = {
    "logger": "your own: +logger.mine._target_=package.Logger",
    "callbacks": "your own: +callbacks.mine._target_=package.Callback",
}


def _own_keys(group: str) -> list[str]:
    names = [field.name for field in dataclasses.fields(OPEN_GROUPS[group])]
    return sorted(name for name in names if name != "others")


def override_config(saved: Mapping[str, Any], overrides: Sequence[str]) -> FitConfig:
    """Return saved settings with ``key=value`` overrides, checked for keys and types.

    What was saved is taken as it stands: ``${oc.env:SECRET}`` in it is text, and reads nothing.

    Raises
    ------
    ConfigError
        When the saved configuration or an override does not fit the schema.
    """
    schema = OmegaConf.structured(FitConfig)
    config: Any = schema
    try:
        kept = fold_others(_literal(dict(saved)))
        solver = kept.get("solver")
        method = solver.get("method") if isinstance(solver, Mapping) else None
        schema.solver = OmegaConf.structured(SOLVERS.get(str(method), SolverConfig))
        noise = kept.get("noise")
        family = noise.get("family") if isinstance(noise, Mapping) else None
        schema.noise = OmegaConf.structured(NOISES.get(str(family), GaussianConfig))
        considered = kept.get("perturbations")
        kind = considered.get("kind") if isinstance(considered, Mapping) else None
        chosen = PERTURBATIONS.get(str(kind), EverythingConfig)
        schema.perturbations = OmegaConf.structured(chosen)
        config = OmegaConf.merge(schema, OmegaConf.create(kept))
        for override in overrides:
            config = _with_override(config, override)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{overrides[-1] if overrides else 'configuration'}: expected key=value with a plain "
            f"value, got what YAML refuses ({' '.join(str(error).split())[:80]})"
        ) from error
    except OmegaConfBaseException as error:
        key = str(error.full_key or "configuration")
        known = _keys_of(config, key.rpartition(".")[0])
        message = " ".join(str(error).split()).split(" full_key:")[0]
        if "not in" in message:
            hint = near(key.rpartition(".")[2], known)
            message = f"{message}; expected one of {', '.join(known)}{hint}"
        raise ConfigError(f"{key}: {message}") from error
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            "configuration: expected a run's settings, got values of other kinds "
            f"({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from error
    return checked(config)


def _with_override(config: DictConfig, override: str) -> Any:
    """Return ``config`` with one ``key=value``; ``+key=value`` adds one to an open group."""
    key, equals, value = override.partition("=")
    plain = key.lstrip("+")
    if not equals:
        raise ConfigError(f"expected key=value, got {override!r}")
    if "." not in plain and options(plain):
        raise ConfigError(
            f"{plain}: expected a single setting such as {plain}.…=…, got a choice of group; "
            "a resumed run keeps its groups"
        )
    group, _, rest = plain.partition(".")
    is_others = group in OPEN_GROUPS and rest.partition(".")[0] not in _own_keys(group)
    if is_others:
        plain = f"{group}.others.{rest}"
    elif plain != key and group not in ("model", "tags"):
        raise ConfigError(
            f"{override}: expected a key of {', '.join(OPEN_GROUPS)}, model or tags to add"
        )
    changed = OmegaConf.from_dotlist([f"{plain}={value}"])
    OmegaConf.set_struct(config, not is_others and plain == key)
    return OmegaConf.merge(config, changed)


def _literal(value: Any) -> Any:
    """Escape what OmegaConf would take for a reference: settings are saved resolved."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, Mapping):
        return {key: _literal(entry) for key, entry in value.items()}
    return [_literal(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _keys_of(config: Any, parent: str) -> list[str]:
    node = OmegaConf.select(config, parent) if parent else config
    known = node if isinstance(node, DictConfig) else ()
    return sorted(str(key) for key in known if key != "others")


def known_settings(parent: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings under ``parent`` with their values, of the groups that are chosen.

    Parameters
    ----------
    parent
        Dotted name; "" for the top.
    overrides
        Of which those that choose a group count.
    """
    register_schemas()
    node = _composed_groups(overrides)
    if node is not None and parent:
        node = OmegaConf.select(node, parent)
    if not isinstance(node, DictConfig):
        return {}
    plain = OmegaConf.to_container(node, resolve=False)
    if not isinstance(plain, dict):
        return {}
    return {str(key): value for key, value in plain.items() if key != "others"}


def _composed_groups(overrides: Sequence[str]) -> DictConfig | None:
    choices = [o for o in overrides if re.fullmatch(r"\w+=\w+", o) and options(o.split("=")[0])]
    with hydra_session():
        try:
            return compose(CONFIG_NAME, overrides=[*search_path(), *choices])
        except (HydraException, OmegaConfBaseException):
            return None


def _known_keys(parent: str, overrides: Sequence[str]) -> list[str]:
    """Return the keys under ``parent``, with only the group choices of ``overrides`` applied."""
    config = _composed_groups(overrides)
    return [] if config is None else _keys_of(config, parent)
