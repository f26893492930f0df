"""Metrics of uncertain predictions, as torchmetrics: thin states over ``functional``."""

from stablelightning.metrics.brier import BrierDecomposition, BrierScore
from stablelightning.metrics.calibration_error import (
    AdaptiveCalibrationError,
    ClasswiseCalibrationError,
)
from stablelightning.metrics.intervals import (
    IntervalCoverage,
    IntervalScore,
    IntervalWidth,
    PinballLoss,
    QuantileCalibrationError,
    Sharpness,
)
from stablelightning.metrics.out_of_distribution import (
    OODAUROC,
    FalsePositiveRate,
    OODAUPRIn,
    OODAUPROut,
)
from stablelightning.metrics.scores import (
    GaussianNegativeLogLikelihood,
    MixtureNegativeLogLikelihood,
    NegativeLogLikelihood,
)
from stablelightning.metrics.selective import (
    AUGRC,
    AURC,
    CoverageAtRisk,
    ExcessAURC,
    RiskAtCoverage,
)

__all__ = [
    "AUGRC",
    "AURC",
    "OODAUROC",
    "AdaptiveCalibrationError",
    "BrierDecomposition",
    "BrierScore",
    "ClasswiseCalibrationError",
    "CoverageAtRisk",
    "ExcessAURC",
    "FalsePositiveRate",
    "GaussianNegativeLogLikelihood",
    "IntervalCoverage",
    "IntervalScore",
    "IntervalWidth",
    "MixtureNegativeLogLikelihood",
    "NegativeLogLikelihood",
    "OODAUPRIn",
    "OODAUPROut",
    "PinballLoss",
    "QuantileCalibrationError",
    "RiskAtCoverage",
    "Sharpness",
]
