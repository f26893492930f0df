"""Calibration of a training's predictions, learned from its validation data."""

from typing import ClassVar

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.temperature import TemperatureScaling
from stablelightning.callbacks.fitted import FittedAfterTraining
from stablelightning.model.prediction import Task


class Calibrate(FittedAfterTraining):
    """Make predictions as sure as they are right, by what the validation data says."""

    rank: ClassVar[int] = 40

    def make_calibrator(self, task: Task) -> Calibrator:
        """A fresh one for the task."""
        return TemperatureScaling()
