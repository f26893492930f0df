"""What every metric here is: sums that add up over batches and processes, in double precision."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from stablelightning.checks import check_whole
from stablelightning.errors import DataError
from stablelightning.functional.checked import class_rows
from stablelightning.functional.rank_groups import (
    BINS,
    RankGroups,
    histogram_groups,
    histogram_index,
    tie_groups,
)
from stablelightning.model.prediction import Prediction


class UncertaintyMetric(Metric, ABC):
    """A torchmetrics ``Metric`` with the habits that all of ours share.

    - Where it takes probabilities, a :class:`~stablelightning.model.prediction.Prediction` will do
      as well.
    - Inputs are moved to the metric's device, and half precision is computed in float32.
    - Before any row has come, :meth:`compute` says so; :meth:`forward` gives NaN for a batch that
      has no value of its own (one kind of rows only), and remembers it all the same.
    - Sums are float64. MPS has none: there the states stay on the CPU.

    Args:
        **kwargs: of torchmetrics' ``Metric``, such as ``sync_on_compute``.
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    #: The prefix of the names of its states. Metrics with the same states share them in a
    #: ``MetricCollection``, which compares names and values after the first batch: two different
    #: sums that are both 0 by then must not pass for one.
    _concern: ClassVar[str]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._of_batch = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and return the metric of that batch alone."""
        self._of_batch = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._of_batch = False

    def compute(self) -> Any:
        """The metric of all that was added.

        Raises:
            DataError: nothing was added that would give it a value.
        """
        try:
            return self._value()
        except DataError as error:
            if self._of_batch:
                return torch.full((), torch.nan, device=self.device)
            raise DataError(f"{type(self).__name__}: {error}") from error

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or the values over time that are given, as torchmetrics does.

        Args:
            val: what :meth:`compute` or :meth:`forward` gave, or a list of such; ``None`` computes.
            ax: matplotlib axes to draw on; ``None`` makes a figure.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    @abstractmethod
    def _value(self) -> Any: ...

    def _name(self, state: str) -> str:
        return f"{self._concern}_{state}"

    def _add_sum(self, state: str, *shape: int) -> None:
        zeros = torch.zeros(shape, dtype=torch.float64)
        self.add_state(self._name(state), default=zeros, dist_reduce_fx="sum")

    def _sum(self, state: str) -> Tensor:
        total: Tensor = getattr(self, self._name(state))
        return total

    def _increase(self, state: str, value: Tensor | float) -> None:
        name = self._name(state)
        value = value.detach().to(self.device) if isinstance(value, Tensor) else value
        setattr(self, name, getattr(self, name) + value)

    def _apply(
        self, fn: Callable[[Any], Any], exclude_state: Sequence[str] = ""
    ) -> torch.nn.Module:
        if fn(torch.zeros(0)).device.type == "mps":
            return self
        return super()._apply(fn, exclude_state)


class MeanScore(UncertaintyMetric):
    """The mean of one number per row."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sum("total")
        self._add_sum("rows")

    def _add(self, values: Tensor) -> None:
        self._increase("total", values.double().sum())
        self._increase("rows", values.numel())

    def _mean(self) -> Tensor:
        if not bool(self._sum("rows") > 0):
            raise DataError("at least one row is needed, got none; call update first.")
        return self._sum("total") / self._sum("rows")

    def _value(self) -> Any:
        return self._mean().float()


class RankMetric(UncertaintyMetric):
    """A statistic of the order in which a score puts the rows.

    By default rows are counted in a histogram of 131072 bins (2 MiB) that are a thousandth of the
    score wide, whatever its unit: memory does not grow with the rows. Rows in one bin count as
    equal; :meth:`bounds` says between which values the exact statistic lies.

    Args:
        exact: keep every score instead, 16 bytes a row on every process.
        **kwargs: of torchmetrics' ``Metric``.
    """

    def __init__(self, *, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exact = exact
        if exact:
            # A process without rows gathers an empty tensor of the metric's own dtype.
            self.set_dtype(torch.float64)
            self.add_state(self._name("scores"), default=[], dist_reduce_fx="cat")
            self.add_state(self._name("marks"), default=[], dist_reduce_fx="cat")
        else:
            self._add_sum("histogram", 2, BINS)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Between which two values the exact statistic lies; they are one value if ``exact``.

        Raises:
            DataError: nothing was added that would give it a value.
        """
        groups = self._groups()
        if self.exact:
            value = self._of(groups).float()
            return value, value
        ends = [end.float() for end in self._ends(groups)]
        return torch.stack(ends).amin(), torch.stack(ends).amax()

    @abstractmethod
    def _of(self, groups: RankGroups) -> Tensor:
        """The statistic of groups of equal score."""

    @abstractmethod
    def _ends(self, groups: RankGroups) -> tuple[Tensor, Tensor]:
        """The least and the largest that it can be for any order within the groups."""

    def _value(self) -> Any:
        return self._of(self._groups()).float()

    def _add(self, score: Tensor, mark: Tensor) -> None:
        score, mark = score.detach().to(self.device), mark.detach().to(self.device).double()
        if self.exact:
            getattr(self, self._name("scores")).append(score.double())
            getattr(self, self._name("marks")).append(mark)
            return
        histogram = self._sum("histogram")
        if histogram.is_inference() and not torch.is_inference_mode_enabled():
            histogram = histogram.clone()  # Lightning reset it in a test; it can be written now
            setattr(self, self._name("histogram"), histogram)
        # Not bincount: it has no deterministic kernel for weights on CUDA, index_add_ has. In
        # place: a copy of the bins would cost more than a batch.
        histogram.index_add_(1, histogram_index(score), torch.stack([torch.ones_like(mark), mark]))

    def _groups(self) -> RankGroups:
        if not self.exact:
            return histogram_groups(*self._sum("histogram"))
        parts = [getattr(self, self._name(state)) for state in ("scores", "marks")]
        # A list of batches, or one tensor where processes have been gathered.
        none = torch.zeros(0, dtype=torch.float64, device=self.device)
        whole = [p if isinstance(p, Tensor) else torch.cat([none, *p]) for p in parts]
        return tie_groups(*whole)


def checked_rows(prediction: Tensor | Prediction, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``(M, C)`` and class indices ``(M,)`` of what ``update`` was given.

    Raises:
        DataError: what are no probabilities, or targets that do not fit.
    """
    probabilities = probabilities_of(prediction)
    return class_rows(probabilities, target.to(probabilities.device))


def probabilities_of(prediction: Tensor | Prediction) -> Tensor:
    """The probabilities themselves, or the mean of a Prediction.

    Raises:
        DataError: the Prediction is one of a regression.
    """
    if not isinstance(prediction, Prediction):
        return prediction
    if prediction.task == "regression":
        raise DataError(
            "probabilities are needed, got a Prediction of regression; take a metric of "
            "regressions, such as GaussianNegativeLogLikelihood."
        )
    return prediction.mean


def check_classes(num_classes: int) -> None:
    """Refuse a number of classes that there cannot be."""
    check_whole("num_classes", num_classes, least=1, hint="1 is for independent labels")
