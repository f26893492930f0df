"""Conformal sets and intervals of a training's predictions, calibrated on its validation data."""

import math
from fractions import Fraction
from typing import Any, ClassVar

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.conformal import ConformalSets
from stablelightning.calibration.conformal_scores import ConformityScore
from stablelightning.callbacks.fitted import FittedAfterTraining
from stablelightning.checks import check_whole
from stablelightning.errors import CheckpointError, ModelError
from stablelightning.model.prediction import Task


class PredictSets(FittedAfterTraining):
    """Give each prediction a set of classes, or an interval, that holds the target as promised.

    After training, a threshold is calibrated on part of the validation data, see
    :class:`~stablelightning.callbacks.fitted.FittedAfterTraining`. From then on ``Trainer.test``
    and ``Trainer.predict`` give every :class:`~stablelightning.Prediction` its ``sets``, or
    ``lower`` and ``upper``, in target units, and ``level``. In a test, ``EstimateUncertainty`` logs
    ``uncertainty/coverage`` beside ``uncertainty/level``, and ``uncertainty/set_size`` (mean number
    of classes) or ``uncertainty/width`` (mean, in target units); its ``rows`` hold them all.

    The promise is about rows that come from where the validation rows came from. If these have
    chosen the best checkpoint they look a little better than new ones; that costs little where one
    number was chosen of a few epochs, and keeping other rows for it costs nothing.

    Args:
        alpha: share of the rows whose set may miss the target, in (0, 1).
        score: how badly a target fits, such as ``AdaptiveScore``, see
            :class:`~stablelightning.calibration.conformal.ConformalSets`; ``None`` follows from
            the prediction.
        by_class: keep the promise in each true class; needs ``1 / alpha`` rows of every class.
        allow_empty: ``False`` puts the most probable class into a set that would hold none.
        seed: >= 0, of how validation rows are dealt out to this and other such callbacks.
        required: whether it is an error that there are too few rows, or that it was fitted to other
            weights; ``False`` says so in a warning.

    Attributes:
        calibrator: the fitted :class:`~stablelightning.calibration.conformal.ConformalSets`.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: before training: fewer validation rows than ``1 / alpha``. After it, rows of one
            class only or NaN are a warning, and there are no sets.

    Source:
        Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world"; Angelopoulos, Bates
        2021, arXiv:2107.07511.

    Example:
        >>> PredictSets(alpha=0.05).least_rows
        20
    """

    rank: ClassVar[int] = 50

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        score: ConformityScore | None = None,
        by_class: bool = False,
        allow_empty: bool = True,
        seed: int = 0,
        required: bool = True,
    ) -> None:
        check_whole("seed", seed, least=0)
        super().__init__(seed=seed, required=required)
        self.alpha = alpha
        self.score = score
        self.by_class = by_class
        self.allow_empty = allow_empty
        self._make()  # refuses a bad setting at once

    @property
    def least_rows(self) -> int:
        """``1 / alpha``, rounded up."""
        return math.ceil(1 / Fraction(self.alpha).limit_denominator(10**6))

    def make_calibrator(self, task: Task) -> Calibrator:
        """Fresh conformal sets.

        Args:
            task: classification or regression.

        Raises:
            ModelError: independent labels, of which there are no sets.
        """
        if task not in ConformalSets.tasks:
            raise ModelError(
                f"PredictSets is for {' and '.join(ConformalSets.tasks)}, got predictions of "
                f"{task}; remove it, or treat each label as a classification of two classes."
            )
        return self._make()

    def _make(self) -> ConformalSets:
        return ConformalSets(
            self.alpha, score=self.score, by_class=self.by_class, allow_empty=self.allow_empty
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the thresholds; a training that goes on fits new ones, whatever its alpha."""
        try:
            super().load_state_dict(state_dict)
        except CheckpointError:
            if self._stage != "fit":
                raise
