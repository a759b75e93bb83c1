"""The types of the configuration: one value, :class:`FitConfig`, that rooms hand each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from eigenexp.errors import ConfigError
from eigenexp.experiments.noise_schema import NOISES
from eigenexp.experiments.perturbations_schema import PERTURBATIONS
from eigenexp.storage.addresses import without_userinfo

__all__ = [
    "OPEN_GROUPS",
    "SCHEMAS",
    "SOLVERS",
    "AnalysisConfig",
    "CallbacksConfig",
    "FitConfig",
    "ImageConfig",
    "LoggerConfig",
    "OperatorConfig",
    "SolverConfig",
    "StudyConfig",
    "TrainerConfig",
    "fold_others",
    "open_schema",
    "plain_config",
    "typed_config",
]


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
    """Arguments of ``lightning.Trainer``; those that have no key here are in ``others``."""

    max_steps: int = 100_000
    max_time: str | None = None
    accelerator: str = "auto"
    devices: Any = 1
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    enable_progress_bar: bool = True
    others: dict[str, Any] = field(default_factory=dict)


@dataclass
class LoggerConfig:
    """Which loggers write, and to which tracking server; a person's own are in ``others``."""

    mlflow: bool = True
    tensorboard: bool = True
    csv: bool = False
    tracking_uri: str | None = None
    others: dict[str, Any] = field(default_factory=dict)


@dataclass
class CallbacksConfig:
    """Intervals, in steps unless they say otherwise; a person's own callbacks in ``others``."""

    log_every: int = 5
    angle_every: int = 25
    pictures_every: int = 100
    checkpoint_every: int = 50
    checkpoint_seconds: float | None = 60.0
    checkpoint_share: float | None = 0.01
    keep_checkpoints: int = 2
    refresh_every: int = 5
    others: dict[str, Any] = field(default_factory=dict)


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
class AnalysisConfig:
    """What is measured once the pairs are found: :mod:`eigenexp.analysis`."""

    amplitude: bool = True
    card: bool = False


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
    noise: Any = MISSING
    perturbations: Any = MISSING
    solver: Any = MISSING
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    parallel: str | None = None
    experiment: Any = None
    root: str = "mlruns"
    experiment_name: str = "eigenexp"
    run_name: str | None = None
    threads: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    trust: bool = False
    resume: str = "never"


SOLVERS: dict[str, type[SolverConfig]] = {
    "auto": SolverConfig,
    "power": PowerConfig,
    "lanczos": LanczosConfig,
    "davidson": DavidsonConfig,
    "exact": ExactConfig,
    "randomized_svd": RandomizedSVDConfig,
    "stochastic": StochasticConfig,
}
SCHEMAS = (
    (None, "schema_fit", FitConfig),
    *(("solver", f"schema_{method}", kind) for method, kind in SOLVERS.items()),
    *(("noise", f"schema_{family}", kind) for family, kind in NOISES.items()),
    *(("perturbations", f"schema_{name}", kind) for name, kind in PERTURBATIONS.items()),
    ("trainer", "schema_trainer", TrainerConfig),
    ("logger", "schema_logger", LoggerConfig),
    ("callbacks", "schema_callbacks", CallbacksConfig),
)


OPEN_GROUPS: dict[str, type[Any]] = {
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
    "callbacks": CallbacksConfig,
}
"""Groups that take keys of other people's classes beside their own; kept in ``others``."""


def open_schema(kind: type[Any]) -> DictConfig:
    """Return a typed node that takes other keys too."""
    node: DictConfig = OmegaConf.structured(kind, flags={"struct": False})
    return node


def typed_config(config: DictConfig) -> FitConfig:
    """Return a composed configuration as one typed value, resolved; ``config`` is left alone.

    Raises
    ------
    ConfigError
        When a typed group has a key that is not its own (``+solver.warp=1``).
    """
    copied = config.copy()
    OmegaConf.set_readonly(copied, False)
    for group, kind in OPEN_GROUPS.items():
        node = copied[group]
        known = {field.name for field in dataclasses.fields(kind)}
        for key in [key for key in node if key not in known]:
            with open_dict(node):
                node.others[key] = node[key]
                del node[key]
    _refuse_strangers(copied)
    found = OmegaConf.to_object(copied)
    if not isinstance(found, FitConfig):
        raise ConfigError(f"configuration: expected a run's, got {type(found).__name__}")
    return found


def fold_others(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings with what is not a key of ours moved to its group's ``others``."""
    folded = dict(plain)
    for group, kind in OPEN_GROUPS.items():
        given = folded.get(group)
        if isinstance(given, Mapping):
            known = {field.name for field in dataclasses.fields(kind)} - {"others"}
            own = {key: value for key, value in given.items() if key in known}
            others = {key: value for key, value in given.items() if key not in known}
            folded[group] = {**own, "others": others}
    return folded


def _refuse_strangers(config: DictConfig) -> None:
    for group, node in {"": config, **{str(key): config[key] for key in config}}.items():
        kind = OmegaConf.get_type(node)
        if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(kind):
            continue
        known = sorted(field.name for field in dataclasses.fields(kind))
        for key in node:
            if key not in known:
                name = f"{group}.{key!s}".lstrip(".")
                raise ConfigError(f"{name}: no such key; expected one of {', '.join(known)}")


def plain_config(settings: FitConfig) -> dict[str, Any]:
    """Return the settings as plain containers, under the keys they are given by, for a file.

    No address keeps the name and password that may stand in it.
    """
    plain = asdict(settings)
    for group in OPEN_GROUPS:
        plain[group] |= plain[group].pop("others")
    return dict(_public(plain))


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _public(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(entry) for entry in value]
    return without_userinfo(value) if isinstance(value, str) else value
