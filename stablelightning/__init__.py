"""Train any deep network stably, and know what it does not know.

The names below are imported on first use, so that ``import stablelightning`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stablelightning.callbacks.clip import ClipGradientNorm
    from stablelightning.callbacks.freeze import UnfreezeGradually
    from stablelightning.callbacks.guard import GuardTraining
    from stablelightning.callbacks.monitor import MonitorSignals
    from stablelightning.callbacks.recommended import recommended_callbacks
    from stablelightning.callbacks.uncertainty import EstimateUncertainty
    from stablelightning.mixin import StableMixin
    from stablelightning.model.activation import swap_activations
    from stablelightning.model.diagnose import diagnose
    from stablelightning.model.dropout import add_dropout
    from stablelightning.model.fold import fold_batch_norm
    from stablelightning.model.head import replace_head
    from stablelightning.model.initialize import initialize
    from stablelightning.model.prediction import Prediction
    from stablelightning.model.recommend import recommend_activation
    from stablelightning.model.sample import mc_dropout, sample_predictions

_HOME = {
    "ClipGradientNorm": "stablelightning.callbacks.clip",
    "EstimateUncertainty": "stablelightning.callbacks.uncertainty",
    "GuardTraining": "stablelightning.callbacks.guard",
    "MonitorSignals": "stablelightning.callbacks.monitor",
    "Prediction": "stablelightning.model.prediction",
    "StableMixin": "stablelightning.mixin",
    "UnfreezeGradually": "stablelightning.callbacks.freeze",
    "add_dropout": "stablelightning.model.dropout",
    "diagnose": "stablelightning.model.diagnose",
    "fold_batch_norm": "stablelightning.model.fold",
    "initialize": "stablelightning.model.initialize",
    "mc_dropout": "stablelightning.model.sample",
    "recommend_activation": "stablelightning.model.recommend",
    "recommended_callbacks": "stablelightning.callbacks.recommended",
    "replace_head": "stablelightning.model.head",
    "sample_predictions": "stablelightning.model.sample",
    "swap_activations": "stablelightning.model.activation",
}

__version__ = "0.1.0"

__all__ = [
    "ClipGradientNorm",
    "EstimateUncertainty",
    "GuardTraining",
    "MonitorSignals",
    "Prediction",
    "StableMixin",
    "UnfreezeGradually",
    "add_dropout",
    "diagnose",
    "fold_batch_norm",
    "initialize",
    "mc_dropout",
    "recommend_activation",
    "recommended_callbacks",
    "replace_head",
    "sample_predictions",
    "swap_activations",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stablelightning' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
