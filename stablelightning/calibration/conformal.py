"""Sets and intervals that hold the target as often as was promised, whatever the model."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.calibration.conformal_scores import SCORES, ConformityScore, usual_score
from stablelightning.errors import CheckpointError, DataError, ModelError, RecipeError
from stablelightning.functional.conformal import conformal_quantile, conformal_rank
from stablelightning.model.prediction import Prediction, Task

#: Enough rows for any alpha in (0, 1) that a float can tell from 0: only alpha itself is checked.
_PLENTY = 2**62


class ConformalSets(Calibrator):
    """Sets of classes, or intervals of values, that hold the target in ``1 - alpha`` of the rows.

    They are calibrated on rows that the model has not been trained on. If later rows come from
    where these came from, the promise holds for every finite number of rows, over the draw of both,
    and whatever the model: a bad one has large sets. It holds on average over rows, not in each
    group of them; ``by_class`` makes it hold in each class.

    A classification gets ``sets``, a regression ``lower`` and ``upper`` (each output on its own),
    both get ``level``.

    Args:
        alpha: share of the rows whose set may miss the target, in (0, 1).
        score: how badly a target fits, such as
            :class:`~stablelightning.calibration.conformal_scores.AdaptiveScore`; ``None`` takes
            :func:`~stablelightning.calibration.conformal_scores.usual_score` of what is fitted.
        by_class: keep the promise in each true class; needs ``1 / alpha`` rows of every class.
        allow_empty: ``False`` puts the most probable class into a set that would hold none, which
            only raises the coverage.

    Attributes:
        thresholds: fitted: a scalar, ``(C,)`` with ``by_class``, or one for each output.
        fitted_score: the score that they belong to.

    Raises:
        RecipeError: ``alpha`` is out of its range, or ``score`` is no score.

    Source:
        Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world"; Angelopoulos, Bates
        2021, arXiv:2107.07511; by class: Vovk 2012, arXiv:1209.2673.

    Example:
        >>> import torch, stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
        >>> known, new = (
        ...     sl.mc_dropout(net, torch.randn(rows, 4), samples=20, seed=0) for rows in (99, 5)
        ... )
        >>> conformal = ConformalSets(alpha=0.1).fit(known, torch.randint(3, (99,)))
        >>> prediction = conformal(new)
        >>> prediction.sets.shape, prediction.level
        (torch.Size([5, 3]), 0.9)
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "regression")
    name = "conformal"

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        score: ConformityScore | None = None,
        by_class: bool = False,
        allow_empty: bool = True,
    ) -> None:
        super().__init__()
        conformal_rank(_PLENTY, alpha)
        if score is not None and not isinstance(score, ConformityScore):
            raise RecipeError(
                f"score must be a conformity score, got {score!r}; try {', '.join(SCORES)}."
            )
        self.alpha = alpha
        self.score = score
        self.by_class = by_class
        self.allow_empty = allow_empty
        self.fitted_score: ConformityScore | None = None
        self.thresholds: Tensor | None = None

    @property
    def level(self) -> float:
        """The share of rows that the sets promise to hold."""
        return round(1 - self.alpha, 12)

    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None:
        score = usual_score(prediction) if self.score is None else self.score
        self._check_score(score, prediction)
        scores = score.of_targets(prediction, target, rows)
        if prediction.task == "classification":
            self.thresholds = self._of_classes(scores, target.long(), prediction.mean.shape[1])
        else:
            self.thresholds = conformal_quantile(scores, self.alpha).cpu()
        self.fitted_score = score

    def _of_classes(self, scores: Tensor, target: Tensor, classes: int) -> Tensor:
        present = target.unique()
        if len(present) < 2:
            raise DataError(
                "conformal sets need rows of two classes or more, got those of class "
                f"{int(present[0])} only; draw the calibration rows from all classes."
            )
        if not self.by_class:
            return conformal_quantile(scores, self.alpha).cpu()
        counts = target.bincount(minlength=classes)
        try:
            conformal_rank(int(counts.min()), self.alpha)
        except DataError as error:
            raise DataError(
                f"by_class needs as many rows of every class, and class {int(counts.argmin())} has "
                f"{int(counts.min())}: {error}"
            ) from error
        each = [conformal_quantile(scores[target == k], self.alpha) for k in range(classes)]
        return torch.stack(each).cpu()

    def _check_score(self, score: ConformityScore, prediction: Prediction) -> None:
        if score.task != prediction.task:
            raise ModelError(
                f"{type(score).__name__} is for {score.task}, got a prediction of "
                f"{prediction.task}; leave score out, or take one for it."
            )
        if self.by_class and prediction.task != "classification":
            raise ModelError(
                f"by_class needs classes, got a prediction of {prediction.task}; leave it out."
            )

    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction:
        assert self.fitted_score is not None
        assert self.thresholds is not None
        self._check_score(self.fitted_score, prediction)
        if not bool(torch.isfinite(prediction.mean).all()):
            raise DataError(
                "conformal sets need finite predictions, got NaN or infinity; look for it in the "
                "inputs."
            )
        thresholds = self.thresholds.to(prediction.mean.device)
        held = self.fitted_score.held(prediction, thresholds, rows)
        if held.sets is not None and not self.allow_empty:
            empty = ~held.sets.any(1, keepdim=True)
            best = torch.zeros_like(held.sets).scatter_(1, held.mean.argmax(1, keepdim=True), True)
            held = replace(held, sets=held.sets | (empty & best))
        return replace(held, level=self.level)

    def _state(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "thresholds": self.thresholds,
            "score": type(self.fitted_score).__name__,
            "score_settings": {} if self.fitted_score is None else self.fitted_score.settings(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        if state["alpha"] != self.alpha:
            raise CheckpointError(
                f"thresholds belong to their alpha: these were fitted for {state['alpha']:g}, got "
                f"alpha={self.alpha:g}; set it back, or fit again."
            )
        kept = self._kept_score(state)
        if self.score is not None and repr(self.score) != repr(kept):
            raise CheckpointError(
                f"thresholds belong to their score: these were fitted for {kept!r}, got "
                f"{self.score!r}; set it back, or fit again."
            )
        self.fitted_score = kept
        self.thresholds = state["thresholds"]

    def _kept_score(self, state: dict[str, Any]) -> ConformityScore:
        name = state["score"]
        if name in SCORES:
            return SCORES[name](**state["score_settings"])
        if self.score is not None and type(self.score).__name__ == name:
            return self.score  # one of the user's own
        raise CheckpointError(
            f"thresholds belong to their score: these were fitted for {name}, which is not known "
            "here; pass score= the same one."
        )
