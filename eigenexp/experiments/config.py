"""The structured configuration: types for every key, composed from the groups in ``conf/``."""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eigenexp.errors import ConfigError
from eigenexp.runs.overview import model_name

__all__ = [
    "CONFIG_MODULE",
    "FitConfig",
    "compose_config",
    "explain",
    "hydra_session",
    "options",
    "override_config",
    "plain_config",
    "register_schemas",
    "shown_settings",
]

CONFIG_MODULE = "eigenexp.conf"
CONFIG_NAME = "fit"


@dataclass
class ImageConfig:
    """Which picture, and what is done to it; see :func:`eigenexp.pictures.picture.load_picture`.

    ``path`` names many: a folder, a glob or a list; each is then a problem of its own.
    """

    source: str | None = MISSING
    path: Any = None
    crop: Any = None
    resize: Any = None
    channels: str = "gray"
    value_range: list[float] = field(default_factory=lambda: [0.0, 1.0])


@dataclass
class SolverConfig:
    """What every method takes; ``strict_verification`` is ``miss_chance`` now."""

    method: str = "auto"
    k: int = 1
    which: str = "both"
    tol: float = 1e-4
    seed: int = 0
    max_products: int | None = None
    miss_chance: float | None = 1e-3
    relative_tol: float | None = None
    strict_verification: bool | None = None


@dataclass
class PowerConfig(SolverConfig):
    """Block power iteration."""

    method: str = "power"


@dataclass
class LanczosConfig(SolverConfig):
    """Thick-restart Lanczos; ``basis_size`` vectors are stored."""

    method: str = "lanczos"
    basis_size: int | None = None


@dataclass
class DavidsonConfig(SolverConfig):
    """Preconditioned Davidson; ``2 * basis_size`` vectors are stored."""

    method: str = "davidson"
    basis_size: int | None = None
    block_size: int = 1
    preconditioner: str = "surrogate"


@dataclass
class ExactConfig(SolverConfig):
    """Dense Jacobian; ``side`` is ``auto``, ``columns``, ``rows`` or ``fisher``."""

    method: str = "exact"
    side: str = "auto"
    chunk_size: int | None = None


@dataclass
class RandomizedSVDConfig(SolverConfig):
    """Randomised subspace iteration, top alone; ``power_iterations: null`` goes on to ``tol``."""

    method: str = "randomized_svd"
    which: str = "top"
    oversampling: int = 10
    power_iterations: int | None = None
    verification_products: int = 10


@dataclass
class StochasticConfig(SolverConfig):
    """Stochastic iteration for ``parallel=average``; ``sample`` pictures a step."""

    method: str = "stochastic"
    which: str = "top"
    tol: float = 1e-2
    sample: int = 4
    step: float = 1.0


@dataclass
class OperatorConfig:
    """How products are computed; see :class:`eigenexp.operators.JacobianOperator`."""

    route: str = "auto"
    chunk_size: int | None = None
    recompute: bool = False
    compile: bool = False
    model_dtype: str | None = None


@dataclass
class TrainerConfig:
    """Arguments of ``lightning.Trainer``."""

    max_steps: int = 100_000
    max_time: str | None = None
    accelerator: str = "auto"
    devices: Any = 1
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    enable_progress_bar: bool = True


@dataclass
class LoggerConfig:
    """Which loggers write, and to which tracking server."""

    mlflow: bool = True
    tensorboard: bool = True
    csv: bool = False
    tracking_uri: str | None = None


@dataclass
class CallbacksConfig:
    """Intervals, in steps unless they say otherwise."""

    log_every: int = 5
    angle_every: int = 25
    pictures_every: int = 100
    checkpoint_every: int = 50
    checkpoint_seconds: float | None = 60.0
    checkpoint_share: float | None = 0.02
    keep_checkpoints: int = 2
    refresh_every: int = 5


@dataclass
class StudyConfig:
    """How many pictures are worked on; see :class:`eigenexp.study.StudyModule`."""

    batch_size: Any = "auto"
    cohort: int | None = None
    checkpoint_seconds: float = 30.0
    figures: bool = False
    retry_failed: bool = False
    retry_unproven: bool = False


@dataclass
class FitConfig:
    """The whole configuration of one run.

    ``model`` is a ``_target_`` with its arguments, and ``layer``: the dotted name of the layer
    whose output is the response (``features.11``), ``null`` for the model's own output.
    ``parallel`` says what several processes share out: ``pictures``, ``columns``, ``average``.
    ``resume`` is ``never`` (a new run) or ``auto`` (go on with the newest unfinished run of the
    same settings, if there is one).
    """

    model: dict[str, Any] = MISSING
    image: ImageConfig = field(default_factory=ImageConfig)
    solver: Any = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    parallel: str | None = None
    experiment: Any = None
    root: str = "mlruns"
    experiment_name: str = "eigenexp"
    run_name: str | None = None
    threads: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    trust: bool = False
    resume: str = "never"


_SOLVERS: dict[str, type[SolverConfig]] = {
    "auto": SolverConfig,
    "power": PowerConfig,
    "lanczos": LanczosConfig,
    "davidson": DavidsonConfig,
    "exact": ExactConfig,
    "randomized_svd": RandomizedSVDConfig,
    "stochastic": StochasticConfig,
}
_SCHEMAS = (
    (None, "schema_fit", FitConfig),
    *(("solver", f"schema_{method}", kind) for method, kind in _SOLVERS.items()),
    ("trainer", "schema_trainer", TrainerConfig),
    ("logger", "schema_logger", LoggerConfig),
    ("callbacks", "schema_callbacks", CallbacksConfig),
)


def register_schemas() -> None:
    """Make the typed schemas known to Hydra; safe to call again."""
    store = ConfigStore.instance()
    for group, name, node in _SCHEMAS:
        store.store(group=group, name=name, node=node, provider="eigenexp")


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


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``conf/fit.yaml`` with ``overrides`` and check every key, type and missing value.

    Raises
    ------
    ConfigError
        Naming the key, and the keys or options that exist.
    """
    register_schemas()
    with hydra_session():
        try:
            config = compose(CONFIG_NAME, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(
            f"{missing[0]}: expected a value, got none; add {missing[0]}=… to the command"
        )
    keep_place(config)
    return config


def keep_place(config: DictConfig) -> None:
    """Turn a crop that is a size alone into one at the place that the picture's own file crops.

    ``image.crop=48`` of camera stays at the photographer's face. A picture whose file has no crop
    is cropped in its middle, by :func:`eigenexp.pictures.picture.load_picture`.
    """
    size = config.image.crop
    if not isinstance(size, int) or isinstance(size, bool) or config.image.source is None:
        return
    files = importlib.resources.files(CONFIG_MODULE).joinpath("image")
    for name in options("image"):
        given = yaml.safe_load(files.joinpath(f"{name}.yaml").read_text(encoding="utf-8")) or {}
        place = given.get("crop")
        if given.get("source") == config.image.source and isinstance(place, list):
            top, left, height, width = place
            corner = [max(0, top + (height - size) // 2), max(0, left + (width - size) // 2)]
            config.image.crop = [*corner, size, size]


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain containers."""
    plain = OmegaConf.to_container(config, resolve=True)
    if not isinstance(plain, dict):
        raise ConfigError(f"configuration: expected a mapping, got {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}


def override_config(saved: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Return a saved configuration with ``key=value`` overrides, checked for keys and types.

    Raises
    ------
    ConfigError
        When the saved configuration or an override does not fit the schema.
    """
    try:
        solver = dict(saved.get("solver") or {})
        schema = OmegaConf.structured(FitConfig)
        typed = _SOLVERS.get(str(solver.get("method")), SolverConfig)
        schema.solver = OmegaConf.structured(typed)
        config = OmegaConf.merge(schema, OmegaConf.create(dict(saved)))
        OmegaConf.set_struct(config, True)
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals:
                raise ConfigError(f"expected key=value, got {override!r}")
            if "." not in key and options(key):
                raise ConfigError(
                    f"{key}: expected a single setting such as {key}.…=…, got a choice of group; "
                    "a resumed run keeps its groups"
                )
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{overrides[-1] if overrides else 'configuration'}: expected key=value with a plain "
            f"value, got what YAML refuses ({' '.join(str(error).split())[:80]})"
        ) from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        parent = str(key).rpartition(".")[0]
        node = OmegaConf.select(config, parent) if parent else config
        known = sorted(str(k) for k in node) if isinstance(node, DictConfig) else []
        raise ConfigError(
            f"{key}: {' '.join(str(error).split()).split(' full_key:')[0]}; "
            f"expected one of {', '.join(known)}"
        ) from error
    if not isinstance(config, DictConfig):
        raise ConfigError("configuration: expected a mapping")
    return config


_NOT_SHOWN = ("trainer.enable_progress_bar", "image.path")


def shown_settings(settings: Mapping[str, Any], picture: str) -> dict[str, Any]:
    """Return the settings that dashboards show as parameters, flat, under dotted names.

    ``model``, ``picture``, ``solver.k``, and of the others those that differ from their defaults:
    MLflow prints every parameter above every picture. All of them are in the checkpoint and the
    report.

    Parameters
    ----------
    settings
        The resolved configuration of a run.
    picture
        The picture's name.
    """
    shown: dict[str, Any] = {
        "model": model_name(settings["model"]),
        "picture": picture,
        "solver.k": settings["solver"].get("k"),
    }
    usual = _usual_settings(settings)
    for group in ("model", "image", "solver", "operator", "trainer", "study"):
        here, there = settings.get(group) or {}, usual.get(group) or {}
        for key, value in here.items():
            if value is None or (key in there and there[key] == value) or key == "_target_":
                continue
            if f"{group}.{key}" not in _NOT_SHOWN and value != picture:
                shown[f"{group}.{key}"] = value
    if settings.get("parallel") is not None:
        shown["parallel"] = settings["parallel"]
    return shown


def _usual_settings(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the defaults of each group, as the chosen model and solver have them."""
    kind = _SOLVERS.get(str(settings["solver"].get("method")), SolverConfig)
    usual: dict[str, dict[str, Any]] = {
        "image": asdict(ImageConfig()),
        "solver": asdict(kind()),
        "operator": asdict(OperatorConfig()),
        "trainer": asdict(TrainerConfig()),
        "study": asdict(StudyConfig()),
    }
    target = settings["model"].get("_target_")
    files = importlib.resources.files(CONFIG_MODULE).joinpath("model")
    for name in options("model"):
        given = yaml.safe_load(files.joinpath(f"{name}.yaml").read_text(encoding="utf-8")) or {}
        if given.get("_target_") == target:
            usual["model"] = given
            break
    return usual


def options(group: str) -> list[str]:
    """Return the files of a configuration group, by the names they are chosen with."""
    from importlib.resources import files

    folder = files(CONFIG_MODULE).joinpath(group)
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn Hydra's message into one line: key, what was got, what exists."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = " ".join(str(error).split())
    unparsed = re.search(r"Error parsing override '(.*?)' ", text)
    if unparsed:
        return f"expected key=value, got {unparsed[1]!r}"
    absent = re.search(r"Could not find '(\w+)/([^']*)'", text)
    if absent:
        group, name = absent[1], absent[2]
        known = options(group)
        return f"{group}: expected one of {', '.join(known)}, got {name!r}{_near(name, known)}"
    key = getattr(cause, "full_key", None) or (re.findall(r"Key '([^']+)'", text) or [None])[0]
    message = " ".join(str(cause).split()).split(" full_key:")[0]
    if key and re.search(r"Key '[^']+' (is not in struct|not in )", message):
        parent, _, name = str(key).rpartition(".")
        known = _known_keys(parent, overrides)
        if not known:
            return f"{key}: no such key yet; write +{key}=… to add it"
        return f"{key}: no such key; expected one of {', '.join(known)}{_near(name, known)}"
    return f"{key}: {message}" if key else f"configuration: {message}"


def _known_keys(parent: str, overrides: Sequence[str]) -> list[str]:
    """Return the keys under ``parent``, with only the group choices of ``overrides`` applied."""
    choices = [o for o in overrides if re.fullmatch(r"\w+=\w+", o) and options(o.split("=")[0])]
    with hydra_session():
        try:
            config = compose(CONFIG_NAME, overrides=choices)
        except (HydraException, OmegaConfBaseException):
            return []
    node = OmegaConf.select(config, parent) if parent else config
    return sorted(str(key) for key in node) if isinstance(node, DictConfig) else []


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
