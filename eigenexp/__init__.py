"""eigenexp: the image changes a vision model feels most and least.

Three doors to one engine: :class:`Eigendistortion` (a drop-in for plenoptic's),
:class:`EigendistortionModule` (for ``lightning.Trainer``) and :func:`solve` with
:class:`FisherOperator` (the bare engine). Every name loads when first used, so that
``import eigenexp`` stays fast.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AtomicCheckpointIO": "eigenexp.checkpoints.lightning_io",
    "AverageFisherOperator": "eigenexp.operators",
    "AverageModule": "eigenexp.modules.average",
    "BatchedFisherOperator": "eigenexp.operators",
    "ConvergenceLogging": "eigenexp.callbacks",
    "ConvergenceStopping": "eigenexp.callbacks",
    "DenseOperator": "eigenexp.operators",
    "Discriminability": "eigenexp.analysis",
    "DistortionPictures": "eigenexp.callbacks",
    "Eigendistortion": "eigenexp.compat.eigendistortion",
    "EigendistortionModule": "eigenexp.modules.eigendistortion",
    "EigenexpError": "eigenexp.errors",
    "FisherOperator": "eigenexp.operators",
    "GracefulStop": "eigenexp.callbacks",
    "JacobianOperator": "eigenexp.operators",
    "LoadWarning": "eigenexp.compat.eigendistortion",
    "MLflowLogger": "eigenexp.tracking.mlflow_logger",
    "PairStatus": "eigenexp.spectrum",
    "Picture": "eigenexp.pictures.picture",
    "ResultFiles": "eigenexp.callbacks",
    "SolverCheckpoint": "eigenexp.callbacks",
    "SolverProgressBar": "eigenexp.callbacks",
    "Spectrum": "eigenexp.spectrum",
    "StopReason": "eigenexp.spectrum",
    "StudyModule": "eigenexp.modules.study",
    "amplitude": "eigenexp.analysis",
    "examine_saved_synthesis": "eigenexp.compat.eigendistortion",
    "load_picture": "eigenexp.pictures.picture",
    "remove_grad": "eigenexp.compat.eigendistortion",
    "report_from": "eigenexp.report",
    "sensitivity": "eigenexp.analysis",
    "set_seed": "eigenexp.compat.eigendistortion",
    "solve": "eigenexp.eigensolvers",
    "spectrum_card": "eigenexp.analysis",
    "validate_image": "eigenexp.compat.eigendistortion",
    "validate_model": "eigenexp.compat.eigendistortion",
    "write_report": "eigenexp.report",
}
_MODULES = {
    "analysis": "eigenexp.analysis",
    "compare": "eigenexp.comparison",
    "eigensolvers": "eigenexp.eigensolvers",
    "images": "eigenexp.pictures",
    "models": "eigenexp.models",
    "noise": "eigenexp.operators.noise",
    "operators": "eigenexp.operators",
    "perturbations": "eigenexp.operators.perturbations",
    "pictures": "eigenexp.pictures",
    "plots": "eigenexp.plots",
    "report": "eigenexp.report",
    "scoring": "eigenexp.scoring",
    "stimuli": "eigenexp.stimuli",
    "study": "eigenexp.study",
    "tracking": "eigenexp.tracking",
    "units": "eigenexp.analysis.units",
}

__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'eigenexp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
