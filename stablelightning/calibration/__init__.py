"""Objects that are fitted on predictions with known targets, and correct later predictions."""

from stablelightning.calibration.conformal import ConformalSets
from stablelightning.calibration.conformal_scores import (
    AdaptiveScore,
    LeastAmbiguousScore,
    QuantileScore,
    RegularizedAdaptiveScore,
    ResidualScore,
    ScaledResidualScore,
)
from stablelightning.calibration.isotonic import IsotonicCalibration
from stablelightning.calibration.quantiles import QuantileRecalibration
from stablelightning.calibration.temperature import TemperatureScaling
from stablelightning.calibration.variance import VarianceScaling
from stablelightning.calibration.vector import VectorScaling

__all__ = [
    "AdaptiveScore",
    "ConformalSets",
    "IsotonicCalibration",
    "LeastAmbiguousScore",
    "QuantileRecalibration",
    "QuantileScore",
    "RegularizedAdaptiveScore",
    "ResidualScore",
    "ScaledResidualScore",
    "TemperatureScaling",
    "VarianceScaling",
    "VectorScaling",
]
