"""plenoptic's eight models that come with their published parameters; also for its benchmark."""

import plenoptic as po

TRAINED = {"pretrained": True, "cache_filt": True}
MODELS = {
    "Identity": po.models.Identity,
    "Linear": lambda: po.models.Linear((7, 7)),
    "Gaussian": lambda: po.models.Gaussian((11, 11), std=2.0),
    "CenterSurround": lambda: po.models.CenterSurround((11, 11)),
    "LinearNonlinear": lambda: po.models.LinearNonlinear(31, **TRAINED),
    "LuminanceGainControl": lambda: po.models.LuminanceGainControl(31, **TRAINED),
    "LuminanceContrastGainControl": lambda: po.models.LuminanceContrastGainControl(31, **TRAINED),
    "OnOff": lambda: po.models.OnOff(31, **TRAINED),
}
