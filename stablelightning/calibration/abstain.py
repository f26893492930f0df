"""Thresholds for answering as a fitted object: chosen once, applied to every later prediction."""

from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.classes import check_probabilities, class_dim
from stablelightning.functional.abstain import FEWEST_ROWS
from stablelightning.model.abstain import (
    UNFAMILIAR,
    Thresholds,
    check_choice,
    choose_thresholds,
    decide,
)
from stablelightning.model.prediction import Prediction, Task


class Abstention(Calibrator):
    """Answer the rows that are sure enough, and say of the others why not.

    What :func:`~stablelightning.model.abstain.choose_thresholds` does, in the shape of every other
    calibrator: the last of a chain, after what corrects the uncertainties that it reads.

    Args:
        risk: the most that answered rows may cost on average: share of wrong answers, or root of
            the mean squared error in target units.
        coverage: share of rows to answer, in (0, 1]; either this or ``risk``.
        confidence: promise the risk for later rows, with this probability; in (0, 1), for classes.
        unfamiliar: share of the fitted rows whose epistemic part is taken for unheard of.

    Attributes:
        thresholds: what was chosen; ``None`` before it is fitted.

    Raises:
        RecipeError: neither or both of ``risk`` and ``coverage``, or one out of its range; when it
            is fitted, one that no threshold reaches.

    Source:
        Geifman, El-Yaniv 2017, arXiv:1705.08500.

    Example:
        >>> import torch, stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
        >>> known = sl.mc_dropout(net, torch.randn(100, 4), samples=20, seed=0)
        >>> abstention = Abstention(coverage=0.9).fit(known, torch.randint(3, (100,)))
        >>> int(abstention(known).answered.sum())
        90
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "multilabel", "regression")
    name: ClassVar[str] = "abstention"
    least_rows: ClassVar[int] = FEWEST_ROWS

    def __init__(
        self,
        *,
        risk: float | None = None,
        coverage: float | None = None,
        confidence: float | None = None,
        unfamiliar: float = UNFAMILIAR,
    ) -> None:
        super().__init__()
        check_choice(risk, coverage, confidence, unfamiliar)
        self.risk = risk
        self.coverage = coverage
        self.confidence = confidence
        self.unfamiliar = unfamiliar
        self.thresholds: Thresholds | None = None

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        if prediction.task == "classification":
            dim = class_dim(prediction)
            check_probabilities(prediction.mean, who=type(self).__name__, dim=dim)
        self.thresholds = choose_thresholds(
            prediction,
            target,
            risk=self.risk,
            coverage=self.coverage,
            confidence=self.confidence,
            unfamiliar=self.unfamiliar,
        )

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        assert self.thresholds is not None
        return decide(prediction, self.thresholds)

    def _state(self) -> dict[str, Any]:
        assert self.thresholds is not None
        return asdict(self.thresholds)

    def _load(self, state: dict[str, Any]) -> None:
        self.thresholds = Thresholds(**state)
