"""The public callbacks, and how the contracts make one of each."""

import inspect
from tempfile import gettempdir
from typing import Any

import lightning as L

from stablelightning import callbacks

#: Settings that keep the contracts fast, and differ from the defaults where that shows something.
SETTINGS: dict[str, dict[str, Any]] = {
    "AbstainWhenUnsure": {"coverage": 0.7, "unfamiliar": 0.05, "seed": 2, "required": False},
    "Calibrate": {"seed": 3, "required": False},
    "ChooseTransfer": {"rows": 20, "race": True, "steps": 2, "layer_decay": 0.5},
    "ClipGradientAdaptive": {"clipping": 0.05, "exclude": []},
    "ClipGradientNorm": {"steps": 4, "bounds": (0.01, 0.5), "multiple": 0.7, "percentile": 60},
    "ClipGradientValue": {"max_value": 0.02},
    "ConsultDoctor": {"batches": 2, "required": False},
    "EstimateUncertainty": {"samples": 9, "seed": 5, "tolerance": 1e-6},
    "ExportModel": {"folder": f"{gettempdir()}/stablelightning-export", "batch_sizes": [1]},
    "FindLearningRate": {"lowest": 1e-4, "steps": 20, "confirm_steps": 30, "required": False},
    "GuardTraining": {"threshold": 5.0, "window": 50, "max_trips": 3, "host_memory": True},
    "HalveLearningRate": {"start": 0.02, "steps": 6, "required": False},
    "InitializeWeights": {"scheme": "lsuv", "overwrite": True},
    "NormalizeGradients": {"standardize": True},
    "SaveBackbone": {"folder": f"{gettempdir()}/stablelightning-backbone", "best": False},
    "SelectActivation": {
        "candidates": ["relu", "leaky_relu(0.2)"],
        "steps": 3,
        "seeds": 2,
        "finalists": 2,
        "required": False,
    },
    "LimitWeightNorm": {"max_norm": 0.4},
    "RegularizeElastic": {"l1_strength": 0.2, "l2_strength": 0.3},
    "RegularizeL1": {"strength": 0.2},
    "RegularizeL2": {"strength": 0.3},
    "RegularizeToStart": {"strength": 0.4, "head_strength": 0.2},
    "PruneByL1": {"sparsity": 0.6, "strength": 0.1, "end": 1, "per_layer": True},
    "PruneGradually": {"sparsity": 0.8, "start": 0.1, "end": 0.75, "every_n_steps": 2},
    "MeasureGap": {"rows": 12, "monitor": "val_loss", "required": False},
    "StopEarly": {"monitor": "val_loss", "patience": 5, "required": False},
    "FineTuneAll": {"factor": 0.3, "layer_decay": 0.5},
    "PredictSets": {"alpha": 0.3, "allow_empty": False, "seed": 2, "required": False},
    "PretrainFirst": {
        "data": {"class_path": "tests.callbacks.modules.OtherTask"},
        "max_epochs": 2,
        "seed": 3,
        "required": False,
    },
    "ProbeThenTune": {"probe": 0.4, "rates": (1e-3, 1e-2)},
    "TrainHead": {"exclude": []},
    "TrainLastGroups": {"count": 1, "layer_decay": 0.5},
    "UnfreezeGradually": {"every_n_steps": 3},
    "MonitorSignals": {"every_n_steps": 3, "window": 8, "dead_share": 0.9},
    "WritePredictions": {
        "folder": f"{gettempdir()}/stablelightning-predictions",
        "name": "p.parquet",
    },
}

#: What is drawn, from which masks, how, for which task and until when are settings of one concern.
MANY = {"EstimateUncertainty": 7}

#: Callbacks that must not change what is learned.
OBSERVERS = {
    "AbstainWhenUnsure",
    "Calibrate",
    "ConsultDoctor",
    "EstimateUncertainty",
    "ExportModel",
    "GuardTraining",
    "MeasureGap",
    "MonitorSignals",
    "PredictSets",
    "SaveBackbone",
    "WritePredictions",
}

#: Callbacks that learn from the validation data of a training, and correct nothing without one.
FITTERS = {"AbstainWhenUnsure", "Calibrate", "PredictSets"}

#: Callbacks that cannot do what they are for around a model with nothing random in it.
SAMPLERS = {"EstimateUncertainty"}

#: Callbacks that cannot do what they are for around a model without a hidden activation.
SWAPPERS = {"SelectActivation"}

#: Callbacks that cannot do what they are for around a model of a single layer.
FREEZERS = {
    "ChooseTransfer",
    "FineTuneAll",
    "ProbeThenTune",
    "TrainHead",
    "TrainLastGroups",
    "UnfreezeGradually",
}

#: Callbacks that say so where batches give neither labels nor numbers for each row.
PROBERS = {"ChooseTransfer"}

#: Callbacks that train on data of their own, which fits the small models here and no others.
PRETRAINERS = {"PretrainFirst"}

#: Callbacks that need Lightning's automatic optimization, and say so around any other module.
AUTOMATIC = {"ChooseTransfer", "FindLearningRate", "HalveLearningRate", "SelectActivation"}

#: Callbacks that say so where a model does not log what they follow.
FOLLOWERS = {"MeasureGap", "StopEarly"}

#: Callbacks that remember every validation. Lightning does not repeat the one before which a
#: checkpoint was saved, at the end of an epoch.
REMEMBER_VALIDATIONS = {"MeasureGap"}

#: Callbacks that say so where torch.export cannot follow a model.
EXPORTERS = {"ExportModel"}


def public_callbacks() -> list[type[L.Callback]]:
    """Every callback class of ``stablelightning.callbacks.__all__``."""
    names = (getattr(callbacks, name) for name in callbacks.__all__)
    return [kind for kind in names if inspect.isclass(kind) and issubclass(kind, L.Callback)]


def make(kind: type[L.Callback]) -> L.Callback:
    """One callback, in settings of its own."""
    return kind(**SETTINGS.get(kind.__name__, {}))


def settings_of(callback: L.Callback) -> dict[str, Any]:
    """The constructor's arguments, which every callback keeps under their own names."""
    return {name: getattr(callback, name) for name in inspect.signature(type(callback)).parameters}
