"""How badly a target fits a prediction: the choices from which conformal sets are made."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.errors import DataError, ModelError
from stablelightning.functional.conformal import (
    adaptive_scores,
    check_penalty,
    least_ambiguous_scores,
    quantile_scores,
    regularized_adaptive_scores,
    scaled_residual_scores,
    uniform_of_rows,
)
from stablelightning.functional.row_keys import row_keys
from stablelightning.functional.scores import at_least_single
from stablelightning.model.prediction import Prediction, Task


class ConformityScore(ABC):
    """What is measured on rows of known target, and which targets of a new row stay below it.

    Attributes:
        task: the task that it belongs to.
    """

    task: ClassVar[Task]

    @abstractmethod
    def of_targets(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> Tensor:
        """The score of each row's target, ``(N,)`` or ``(N, ...)``; larger fits worse."""

    @abstractmethod
    def held(self, prediction: Prediction, threshold: Tensor, rows: Tensor | None) -> Prediction:
        """The prediction with its sets, or intervals: all targets that score at most this."""

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(vars(self))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({given})"


# ---- classes ------------------------------------------------------------------------------------


class ClassScore(ConformityScore):
    """A score for every class of a row; the set holds those that do not exceed the threshold."""

    task = "classification"

    @abstractmethod
    def of_classes(self, prediction: Prediction, rows: Tensor | None) -> Tensor:
        """The score that each class would have as the target, ``(N, C)``."""

    def of_targets(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> Tensor:
        """The score of each row's class, ``(N,)``.

        Raises:
            DataError: targets are no class indices.
        """
        scores = self.of_classes(prediction, rows)
        check_classes(target, scores.shape)
        return scores.gather(1, target.long().unsqueeze(1)).squeeze(1)

    def held(self, prediction: Prediction, threshold: Tensor, rows: Tensor | None) -> Prediction:
        """The prediction with ``sets``; ``threshold`` is a scalar, or ``(C,)``, one for a class."""
        return replace(prediction, sets=self.of_classes(prediction, rows) <= threshold)


class LeastAmbiguousScore(ClassScore):
    """One minus the probability of the class (LAC): the smallest sets on average.

    Where the model is unsure of everything it may name no class at all, which is an answer too:
    nothing fits. Harder rows are missed more often than easier ones.

    Source:
        Sadinle, Lei, Wasserman 2019, arXiv:1609.00451.

    Example:
        >>> LeastAmbiguousScore()
        LeastAmbiguousScore()
    """

    def of_classes(self, prediction: Prediction, rows: Tensor | None) -> Tensor:
        """One minus the mean probability."""
        return least_ambiguous_scores(prediction.mean)


class AdaptiveScore(ClassScore):
    """The probability of all classes that are more probable, and part of its own (APS).

    Sets grow where the model is unsure, so that hard rows are held about as often as easy ones; on
    average they are larger than those of :class:`LeastAmbiguousScore`.

    Args:
        randomized: take a drawn share of a class's own probability, by which the coverage is just
            what was promised. Without it the class with which the sum passes the threshold is in
            the set as well: sets are larger, hold more than they promise, and are never empty.
        seed: of those draws, which depend on the row alone and not on its batch.

    Raises:
        RecipeError: ``seed`` is negative.

    Source:
        Romano, Sesia, Candès 2020, arXiv:2006.02544.

    Example:
        >>> AdaptiveScore(randomized=False)
        AdaptiveScore(randomized=False, seed=0)
    """

    def __init__(self, *, randomized: bool = True, seed: int = 0) -> None:
        check_whole("seed", seed, least=0)
        self.randomized = randomized
        self.seed = seed

    def of_classes(self, prediction: Prediction, rows: Tensor | None) -> Tensor:
        """Sums of sorted probabilities."""
        if not self.randomized:
            return self._scores(prediction, None)
        # Rows that nobody named are told apart by what was predicted of them.
        keys = row_keys(prediction.mean) if rows is None else rows
        return self._scores(prediction, uniform_of_rows(keys, self.seed))

    def held(self, prediction: Prediction, threshold: Tensor, rows: Tensor | None) -> Prediction:
        """The prediction with ``sets``."""
        if self.randomized:
            return super().held(prediction, threshold, rows)
        # By what the more probable classes sum to: what held the target by more still holds it.
        before = self._scores(prediction, torch.zeros(len(prediction.mean)))
        return replace(prediction, sets=before <= threshold)

    def _scores(self, prediction: Prediction, uniform: Tensor | None) -> Tensor:
        return adaptive_scores(prediction.mean, uniform)


class RegularizedAdaptiveScore(AdaptiveScore):
    """APS with a price on every class after the first few (RAPS), against very large sets.

    For hundreds of classes, whose long tail of tiny probabilities makes APS name far too many.

    Args:
        penalty: added for each class after the free ones, >= 0; in units of probability.
        free: so many of the most probable classes cost nothing, >= 0.
        randomized: as for :class:`AdaptiveScore`.
        seed: as there.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Angelopoulos et al. 2021, arXiv:2009.14193.

    Example:
        >>> RegularizedAdaptiveScore(penalty=0.1, free=2).free
        2
    """

    def __init__(
        self, *, penalty: float = 0.01, free: int = 5, randomized: bool = True, seed: int = 0
    ) -> None:
        check_penalty(penalty, free)
        super().__init__(randomized=randomized, seed=seed)
        self.penalty = penalty
        self.free = free

    def _scores(self, prediction: Prediction, uniform: Tensor | None) -> Tensor:
        return regularized_adaptive_scores(
            prediction.mean, uniform, penalty=self.penalty, free=self.free
        )


# ---- values -------------------------------------------------------------------------------------


class ResidualScore(ConformityScore):
    """Distance between target and mean: intervals of one width for all rows.

    Source:
        Lei et al. 2018, arXiv:1604.04173, algorithm 2.

    Example:
        >>> ResidualScore().task
        'regression'
    """

    task = "regression"

    def of_targets(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> Tensor:
        """Distances in scales, in the shape of the mean."""
        scale = self._scale(prediction)
        return scaled_residual_scores(prediction.mean, scale, as_shaped(target, prediction.mean))

    def held(self, prediction: Prediction, threshold: Tensor, rows: Tensor | None) -> Prediction:
        """The prediction with ``lower`` and ``upper``, as far from the mean on either side."""
        mean = at_least_single(prediction.mean)
        reach = threshold * self._scale(prediction)
        return replace(prediction, lower=mean - reach, upper=mean + reach)

    def _scale(self, prediction: Prediction) -> Tensor:
        return torch.ones_like(at_least_single(prediction.mean))


class ScaledResidualScore(ResidualScore):
    """Distance in predicted standard deviations: wide where the model is unsure, narrow elsewhere.

    The standard deviation is that of the Monte Carlo prediction, aleatoric and epistemic together.
    It need not be right, only larger where errors are larger.

    Source:
        Papadopoulos, Gammerman, Vovk 2008, "Normalized nonconformity measures for regression
        conformal prediction"; Lei et al. 2018, arXiv:1604.04173, section 5.2.

    Example:
        >>> ScaledResidualScore()
        ScaledResidualScore()
    """

    def _scale(self, prediction: Prediction) -> Tensor:
        return at_least_single(prediction.total).sqrt()


class QuantileScore(ConformityScore):
    """How far the target lies outside a predicted interval (CQR): moves both ends alike.

    For networks that predict quantiles (:class:`~stablelightning.nn.QuantileHead`), or any
    prediction that has ``lower`` and ``upper`` already: intervals keep their form, which may be
    lopsided, and become as wide as they must be; or narrower, where they held too much.

    Source:
        Romano, Patterson, Candès 2019, arXiv:1905.03222.

    Example:
        >>> QuantileScore()
        QuantileScore()
    """

    task = "regression"

    def of_targets(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> Tensor:
        """Distances from the interval, negative inside, in the shape of the mean."""
        lower, upper = self._ends(prediction)
        return quantile_scores(lower, upper, as_shaped(target, prediction.mean))

    def held(self, prediction: Prediction, threshold: Tensor, rows: Tensor | None) -> Prediction:
        """The prediction with both ends moved; one that would turn inside out becomes a point."""
        lower, upper = self._ends(prediction)
        moved_lower, moved_upper = lower - threshold, upper + threshold
        middle = (moved_lower + moved_upper) / 2
        inside_out = moved_lower > moved_upper
        return replace(
            prediction,
            lower=torch.where(inside_out, middle, moved_lower),
            upper=torch.where(inside_out, middle, moved_upper),
        )

    def _ends(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        if prediction.lower is None or prediction.upper is None:
            raise ModelError(
                "QuantileScore needs predictions with lower and upper, got one without; train a "
                "network with a QuantileHead, or take ScaledResidualScore."
            )
        return at_least_single(prediction.lower), at_least_single(prediction.upper)


#: Every score by its name, as fitted sets keep it.
SCORES: dict[str, type[ConformityScore]] = {
    kind.__name__: kind
    for kind in (
        LeastAmbiguousScore,
        AdaptiveScore,
        RegularizedAdaptiveScore,
        ResidualScore,
        ScaledResidualScore,
        QuantileScore,
    )
}


def usual_score(prediction: Prediction) -> ConformityScore:
    """The score for a prediction about which nothing else is known.

    Args:
        prediction: of a classification: least ambiguous sets. Of a regression: by its quantiles if
            it has an interval, else by its standard deviation if it has one in every row, else by
            the plain residual.

    Raises:
        ModelError: any other task.

    Example:
        >>> import stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
        >>> usual_score(sl.mc_dropout(net, torch.randn(5, 4), samples=20, seed=0))
        LeastAmbiguousScore()
    """
    if prediction.task == "classification":
        return LeastAmbiguousScore()
    if prediction.task != "regression":
        raise ModelError(
            f"conformal sets are for classification and regression, got {prediction.task}; "
            "calibrate each label as a classification of two classes."
        )
    if prediction.lower is not None:
        return QuantileScore()
    return ScaledResidualScore() if bool((prediction.total > 0).all()) else ResidualScore()


def check_classes(target: Tensor, shape: torch.Size) -> None:
    """Refuse targets that are no class indices of rows of this shape.

    Raises:
        DataError: another shape, numbers in between, or classes that there are not.

    Example:
        >>> check_classes(torch.tensor([0, 2]), torch.Size([2, 3]))
    """
    if target.ndim != 1 or (target.is_floating_point() and bool((target != target.round()).any())):
        raise DataError(
            f"targets of conformal sets must be class indices (N,), got {target.dtype} of shape "
            f"{tuple(target.shape)}; pass the number of each row's class."
        )
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= shape[1]:
        raise DataError(
            f"class indices must be in [0, {shape[1]}), got {low} to {high}; leave out rows that "
            "have no class."
        )


def as_shaped(target: Tensor, mean: Tensor) -> Tensor:
    """The target in the shape of the mean, where they differ by axes of one at most.

    Raises:
        DataError: other shapes, or NaN.

    Example:
        >>> as_shaped(torch.zeros(3), torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """
    if [n for n in target.shape if n != 1] != [n for n in mean.shape if n != 1]:
        raise DataError(
            f"targets must have the shape of the predictions {tuple(mean.shape)}, got "
            f"{tuple(target.shape)}; broadcasting would pair rows wrongly."
        )
    if not bool(torch.isfinite(target).all()):
        raise DataError(
            f"targets must be finite, got {int((~torch.isfinite(target)).sum())} that are not; "
            "leave out rows of unknown target."
        )
    return target.reshape(mean.shape)
