"""Calibration of a training's predictions, learned from its validation data."""

import copy
from typing import ClassVar

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.temperature import TemperatureScaling
from stablelightning.calibration.variance import VarianceScaling
from stablelightning.callbacks.fitted import FittedAfterTraining
from stablelightning.checks import check_whole
from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.prediction import Task


class Calibrate(FittedAfterTraining):
    """Make predictions as sure as they are right, by what the validation data says.

    After training a calibrator is fitted to predictions of the validation data, as they are made by
    the best checkpoint's weights and the Trainer's ``EstimateUncertainty`` (plainly where there is
    none). It is kept in the checkpoint, and in a test or a prediction from that checkpoint, in this
    process or another, corrects every batch: ``Trainer.predict`` returns corrected predictions, and
    a test logs their scores as ``uncertainty/<name>_calibrated`` beside the others.

    The validation rows also choose the checkpoint and stop the training; of the few numbers that
    are fitted here that asks little. With conformal sets or decisions in the Trainer each of them
    gets a part of the rows of its own.

    Args:
        method: a calibrator of :mod:`stablelightning.calibration`, taken as a pattern; ``None``:
            :class:`~stablelightning.calibration.TemperatureScaling` for classes,
            :class:`~stablelightning.calibration.VarianceScaling` for values.
        seed: >= 0, of how the validation rows are dealt out where several callbacks share them.
        required: whether it is an error that there are too few rows, or that it was fitted to other
            weights; ``False`` says so in a warning, and leaves predictions as they are.

    Attributes:
        calibrator: what was fitted; ``None`` before.
        rows_fitted: number of validation rows that it was fitted to.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model.
        DataError: before training: no validation data, or too few rows; in a test: the rows that it
            was fitted on. After training, what nothing can be learned from is a warning.
        CheckpointError: a test or a prediction of weights that it was not fitted to.

    Source:
        Guo et al. 2017, arXiv:1706.04599; after pooling the samples as in Rahaman, Thiery 2021,
        arXiv:2007.08792.

    Example:
        >>> from stablelightning.calibration import VectorScaling
        >>> Calibrate(VectorScaling()).make_calibrator("classification").fitted
        False
    """

    rank: ClassVar[int] = 40

    def __init__(
        self, method: Calibrator | None = None, *, seed: int = 0, required: bool = True
    ) -> None:
        if method is not None and not isinstance(method, Calibrator):
            raise RecipeError(
                f"method must be a calibrator, got {method!r}; try TemperatureScaling(), "
                "VectorScaling(), IsotonicCalibration(), VarianceScaling() or "
                "QuantileRecalibration()."
            )
        check_whole("seed", seed, least=0)
        super().__init__(seed=seed, required=required)
        self.method = method

    @property
    def least_rows(self) -> int:
        """The fewest validation rows that it can be fitted to."""
        return (self.method or TemperatureScaling()).least_rows

    def make_calibrator(self, task: Task) -> Calibrator:
        """A fresh calibrator.

        Args:
            task: of the predictions.

        Raises:
            ModelError: the task is not one that it is for.
        """
        if self.method is not None:
            return copy.deepcopy(self.method)
        if task == "classification":
            return TemperatureScaling()
        if task == "regression":
            return VarianceScaling()
        raise ModelError(
            f"Calibrate is for classification and regression, got {task}; remove it from the "
            "recipe, or give it a method of your own."
        )
