"""Floor 2: tools that act on a whole model."""

from stablelightning.model.prediction import Prediction
from stablelightning.model.sample import mc_dropout, sample_predictions

__all__ = ["Prediction", "mc_dropout", "sample_predictions"]
