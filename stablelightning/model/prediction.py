"""What a sampled model says, and how far it can be trusted."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stablelightning.errors import ModelError, RecipeError
from stablelightning.functional.abstain import REASONS
from stablelightning.functional.recalibrate import central_interval

if TYPE_CHECKING:
    from stablelightning.model.abstain import Thresholds

Task = Literal["classification", "multilabel", "regression"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The mean of the sampled predictions, with its uncertainty split by where it comes from.

    ``aleatoric`` is what more training data would not remove (noise in the data), ``epistemic``
    what it would (the model does not know), and ``total`` is their sum. Their units follow the
    task: nats for classification and multi-label, squared target units for regression.

    Args:
        task: ``"classification"``, ``"multilabel"`` or ``"regression"``.
        mean: mean probabilities ``(N, C, ...)``; per-label probabilities ``(N, L)`` for
            multi-label; the predictive mean ``(N, ...)`` for regression.
        total: predictive entropy ``(N, ...)`` (per label ``(N, L)``), or total variance.
        aleatoric: expected entropy, or the mean of the predicted variances (0 without such a
            head).
        epistemic: mutual information, or the variance of the predicted means.
        variation_ratio: share of the samples that disagree with the most frequent class,
            ``(N, ...)``, in [0, 1); ``None`` for regression.
        standard_error: standard error of ``mean``, same shape; it shrinks as 1/sqrt(samples).
        samples_used: number of samples drawn.
        engine: the engine that drew them, with the reason where ``auto`` chose it.
        samples: the samples themselves ``(T, ...)`` if they were kept, else ``None``.
        sets: ``(N, C)`` bool, the classes that a conformal set holds; ``None`` without one.
        lower: ``(N, ...)`` lower end of an interval that was calibrated, in target units.
        upper: its upper end.
        level: the share of rows that the sets or intervals promise to hold, in (0, 1).
        answered: ``(N,)`` bool, False where the model abstains; ``None`` if nobody decided.
        reason: ``(N,)`` int64, why it abstains; see :attr:`reasons`.
        quantiles: pairs of a level and a quantile, in standard deviations from the mean, which take
            a Gaussian's place in :meth:`interval`; ``None`` for a Gaussian.
        corrected: what was done to it since it was sampled, in order, such as ``"temperature"``.

    Source:
        Depeweg et al. 2018, arXiv:1710.07283 (the split); Gal 2016, PhD thesis, section 3.3
        (variation ratio).

    Example:
        >>> import torch, stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
        >>> prediction = sl.mc_dropout(net, torch.randn(5, 4), samples=20, seed=0)
        >>> prediction.mean.shape, prediction.epistemic.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    task: Task
    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    standard_error: Tensor
    samples_used: int
    engine: str
    variation_ratio: Tensor | None = None
    samples: Any = None
    sets: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None
    level: float | None = None
    answered: Tensor | None = None
    reason: Tensor | None = None
    quantiles: tuple[tuple[float, float], ...] | None = None
    corrected: tuple[str, ...] = ()

    @property
    def predictive_entropy(self) -> Tensor:
        """Entropy of the mean probabilities, in nats; the same tensor as ``total``."""
        return self._entropy("predictive_entropy", self.total)

    @property
    def expected_entropy(self) -> Tensor:
        """Mean entropy of the samples, in nats; the same tensor as ``aleatoric``."""
        return self._entropy("expected_entropy", self.aleatoric)

    @property
    def mutual_information(self) -> Tensor:
        """Predictive minus expected entropy, in nats; the same tensor as ``epistemic``."""
        return self._entropy("mutual_information", self.epistemic)

    @property
    def variance(self) -> Tensor:
        """Total variance of a regression, in squared target units; the same tensor as ``total``."""
        if self.task != "regression":
            raise ModelError(
                f"variance belongs to regression, and this is a {self.task} prediction; "
                "use total, aleatoric and epistemic, which every task has."
            )
        return self.total

    @property
    def std(self) -> Tensor:
        """Square root of :attr:`variance`, in target units."""
        return self.variance.sqrt()

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central interval of a regression that should hold ``level`` of the targets.

        A Gaussian's with the total variance; after
        :class:`~stablelightning.calibration.QuantileRecalibration` by the quantiles of the errors.
        What conformal calibration promises is in ``lower`` and ``upper``.

        Args:
            level: in (0, 1).

        Returns:
            Its lower and its upper end, in target units, in the shape of the mean.

        Raises:
            ModelError: this is no regression.
            RecipeError: ``level`` is not in (0, 1).
        """
        return central_interval(self.mean, self.std, level, quantiles=self.quantiles)

    @property
    def reasons(self) -> list[str]:
        """What became of every row: "answered", or the reason why not.

        The reasons are "aleatoric", "epistemic" and "out of distribution", by the rule of
        :class:`~stablelightning.model.abstain.Thresholds`.

        Raises:
            ModelError: nobody decided; :meth:`abstain` does.
        """
        if self.reason is None:
            raise ModelError(
                "reasons belong to a prediction that was decided upon, and nobody decided on this "
                "one; call abstain(...), which says for each row whether it is answered."
            )
        return [REASONS[number] for number in self.reason.tolist()]

    def abstain(
        self,
        thresholds: "Thresholds | None" = None,
        *,
        risk: float | None = None,
        coverage: float | None = None,
        validation: "Prediction | None" = None,
        target: Tensor | None = None,
    ) -> "Prediction":
        """Answer the rows that are sure enough; of the others, :attr:`reasons` says why not.

        Args:
            thresholds: as :func:`~stablelightning.model.abstain.choose_thresholds` gives them,
                which also has a promise to offer. Without them they are chosen here:
            risk: the most that answered rows may cost on average (share of wrong answers; of a
                regression, the root of the mean squared error).
            coverage: share of the rows to answer, in (0, 1]; either this or ``risk``.
            validation: a prediction, made like this one, of rows of known target.
            target: their targets, ``(M,)``.

        Returns:
            The same prediction with ``answered`` and ``reason``.

        Raises:
            RecipeError: neither thresholds nor what they are chosen from, or a risk or coverage
                that none reaches.
            DataError: NaN, no rows, lengths that differ.

        Example:
            >>> import torch, stablelightning as sl
            >>> from torch.nn import Dropout, Linear, Sequential
            >>> net = Sequential(Linear(4, 8), Dropout(0.5), Linear(8, 3))
            >>> known, new = (
            ...     sl.mc_dropout(net, torch.randn(rows, 4), samples=20, seed=0) for rows in (99, 5)
            ... )
            >>> target = torch.randint(3, (99,))
            >>> new.abstain(coverage=0.8, validation=known, target=target).answered.dtype
            torch.bool
        """
        from stablelightning.model.abstain import choose_thresholds, decide

        if thresholds is None:
            if validation is None or target is None:
                raise RecipeError(
                    "abstain needs thresholds, or validation and target to choose them from, got "
                    "neither; predict rows of known target first, and pass both."
                )
            thresholds = choose_thresholds(validation, target, risk=risk, coverage=coverage)
        return decide(self, thresholds)

    def to(self, device: torch.device | str) -> "Prediction":
        """Return the same prediction with every tensor on ``device``."""

        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        return Prediction(**{f.name: tree_map(move, getattr(self, f.name)) for f in fields(self)})

    def __repr__(self) -> str:
        return (
            f"Prediction(task={self.task!r}, mean={tuple(self.mean.shape)}, "
            f"samples_used={self.samples_used}, engine={self.engine!r})"
        )

    def _entropy(self, name: str, value: Tensor) -> Tensor:
        if self.task == "regression":
            raise ModelError(
                f"{name} belongs to classification, and this is a regression; "
                "use total, aleatoric and epistemic, which every task has."
            )
        return value
