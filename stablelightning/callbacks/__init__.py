"""Floor 3: Lightning callbacks, one concern each."""

from stablelightning.callbacks.abstain import AbstainWhenUnsure
from stablelightning.callbacks.activation import SelectActivation
from stablelightning.callbacks.backbone import SaveBackbone
from stablelightning.callbacks.calibrate import Calibrate
from stablelightning.callbacks.choose_transfer import ChooseTransfer
from stablelightning.callbacks.clip import (
    ClipGradientAdaptive,
    ClipGradientNorm,
    ClipGradientValue,
    NormalizeGradients,
)
from stablelightning.callbacks.conformal import PredictSets
from stablelightning.callbacks.doctor import ConsultDoctor
from stablelightning.callbacks.export import ExportModel
from stablelightning.callbacks.freeze import (
    FineTuneAll,
    ProbeThenTune,
    TrainHead,
    TrainLastGroups,
    UnfreezeGradually,
)
from stablelightning.callbacks.gap import MeasureGap
from stablelightning.callbacks.guard import GuardTraining
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.callbacks.learning_rate import FindLearningRate, HalveLearningRate
from stablelightning.callbacks.monitor import MonitorSignals
from stablelightning.callbacks.optimizer_modes import SwitchOptimizerModes
from stablelightning.callbacks.predictions import WritePredictions
from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.callbacks.recommended import recommended_callbacks
from stablelightning.callbacks.regularize import (
    LimitWeightNorm,
    RegularizeElastic,
    RegularizeL1,
    RegularizeL2,
)
from stablelightning.callbacks.regularize_start import RegularizeToStart
from stablelightning.callbacks.sparse import PruneByL1, PruneGradually
from stablelightning.callbacks.stop_early import StopEarly
from stablelightning.callbacks.uncertainty import EstimateUncertainty

__all__ = [
    "AbstainWhenUnsure",
    "Calibrate",
    "ChooseTransfer",
    "ClipGradientAdaptive",
    "ClipGradientNorm",
    "ClipGradientValue",
    "ConsultDoctor",
    "EstimateUncertainty",
    "ExportModel",
    "FindLearningRate",
    "FineTuneAll",
    "GuardTraining",
    "HalveLearningRate",
    "InitializeWeights",
    "LimitWeightNorm",
    "MeasureGap",
    "MonitorSignals",
    "NormalizeGradients",
    "PredictSets",
    "PretrainFirst",
    "ProbeThenTune",
    "PruneByL1",
    "PruneGradually",
    "RegularizeElastic",
    "RegularizeL1",
    "RegularizeL2",
    "RegularizeToStart",
    "SaveBackbone",
    "SelectActivation",
    "StopEarly",
    "SwitchOptimizerModes",
    "TrainHead",
    "TrainLastGroups",
    "UnfreezeGradually",
    "WritePredictions",
    "recommended_callbacks",
]
