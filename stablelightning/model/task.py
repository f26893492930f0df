"""What each task means by default: its loss, its metrics, and what the metrics compare."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from stablelightning.errors import DataError, ModelError
from stablelightning.functional.intervals import pinball_loss
from stablelightning.functional.scores import at_least_single, gaussian_negative_log_likelihood
from stablelightning.functional.uncertainty import as_label_probabilities
from stablelightning.model.prediction import Task
from stablelightning.nn.heads import Distribution, Gaussian, Quantiles

#: Targets with this index count in no loss and no metric; it is the default of F.cross_entropy.
IGNORED_CLASS = -100


class TaskDefaults(ABC):
    """The loss and the metrics of a task. ``output`` is a tensor or a distribution."""

    @abstractmethod
    def loss(self, output: Tensor | Distribution, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    @abstractmethod
    def metrics(self, output: Tensor | Distribution) -> dict[str, Metric]:
        """Fresh metrics by their logged names, for outputs of this shape."""

    @abstractmethod
    def compared(
        self, output: Tensor | Distribution, target: Tensor, *, logits: bool
    ) -> tuple[Tensor, Tensor]:
        """What the metrics are updated with; ``logits``: the output is known to be logits."""


class Classification(TaskDefaults):
    """One class per row: logits ``(N, C, ...)``, class indices ``(N, ...)``."""

    def loss(self, output: Tensor | Distribution, target: Tensor) -> Tensor:
        """Cross entropy, in nats; targets of :data:`IGNORED_CLASS` are left out."""
        scores, target = self.compared(output, target, logits=True)
        return F.cross_entropy(scores, target, ignore_index=IGNORED_CLASS)

    def metrics(self, output: Tensor | Distribution) -> dict[str, Metric]:
        """Accuracy (share of the rows) and macro F1, both in [0, 1]."""
        classes = _scores("classification", output).shape[1]
        # The loss has checked the targets; torchmetrics would wait for the device to do it again.
        shared: dict[str, Any] = {"ignore_index": IGNORED_CLASS, "validate_args": False}
        return {
            "accuracy": MulticlassAccuracy(classes, average="micro", **shared),
            "f1": MulticlassF1Score(classes, average="macro", **shared),
        }

    def compared(
        self, output: Tensor | Distribution, target: Tensor, *, logits: bool
    ) -> tuple[Tensor, Tensor]:
        """Class scores ``(N, C, ...)`` and indices ``(N, ...)``."""
        scores = _scores("classification", output)
        if scores.ndim < 2 or scores.shape[1] < 2:
            raise ModelError(
                "classification needs two or more class scores per row (N, C, ...), got "
                f"{tuple(scores.shape)}; give the network more outputs, or use task='multilabel'."
            )
        target = _aligned(scores.select(1, 0), target)
        return at_least_single(scores), target.long()


class Multilabel(TaskDefaults):
    """Independent yes-or-no labels: logits ``(N, L)``, targets 0 or 1 of the same shape."""

    def loss(self, output: Tensor | Distribution, target: Tensor) -> Tensor:
        """Binary cross entropy, mean over rows and labels, in nats."""
        scores = at_least_single(_scores("multilabel", output))
        target = _aligned(scores, target)
        return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype))

    def metrics(self, output: Tensor | Distribution) -> dict[str, Metric]:
        """Accuracy (share of all labels) and F1 (macro over the labels), both in [0, 1]."""
        scores = _scores("multilabel", output)
        labels = scores.shape[1] if scores.ndim > 1 else 1
        f1: Metric = BinaryF1Score(validate_args=False)
        if labels > 1:
            f1 = MultilabelF1Score(labels, average="macro", validate_args=False)
        return {"accuracy": BinaryAccuracy(validate_args=False), "f1": f1}

    def compared(
        self, output: Tensor | Distribution, target: Tensor, *, logits: bool
    ) -> tuple[Tensor, Tensor]:
        """Probabilities and 0 or 1, the same shape."""
        scores = at_least_single(_scores("multilabel", output))
        target = _aligned(scores, target)
        return (scores.sigmoid() if logits else as_label_probabilities(scores)), target.long()


class Regression(TaskDefaults):
    """Numbers, or a distribution, against targets of the same shape; ``(N, 1)`` meets ``(N,)``."""

    def loss(self, output: Tensor | Distribution, target: Tensor) -> Tensor:
        """Mean squared error; the mean negative log-likelihood, in nats, of a ``Gaussian``.

        Of ``Quantiles``, the mean of the pinball losses of both ends and the median.
        """
        mean, target = self.compared(output, target, logits=False)
        if isinstance(output, Gaussian):
            variance = output.variance.reshape(mean.shape)
            return gaussian_negative_log_likelihood(mean, variance, target).mean()
        if isinstance(output, Quantiles):
            return _pinball(output, target)
        return F.mse_loss(mean, target)

    def metrics(self, output: Tensor | Distribution) -> dict[str, Metric]:
        """Root mean squared and mean absolute error, in target units."""
        return {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}

    def compared(
        self, output: Tensor | Distribution, target: Tensor, *, logits: bool
    ) -> tuple[Tensor, Tensor]:
        """Means and targets, the same shape and dtype."""
        mean = at_least_single(output.mean if isinstance(output, Distribution) else output)
        target = _aligned(mean, target).to(mean.dtype)
        return mean.reshape(target.shape), target


#: The defaults of every task, by its name.
TASKS: dict[Task, TaskDefaults] = {
    "classification": Classification(),
    "multilabel": Multilabel(),
    "regression": Regression(),
}


def _pinball(output: Quantiles, target: Tensor) -> Tensor:
    ends = [each.reshape(target.shape) for each in (output.lower, output.median, output.upper)]
    level = output.level.flatten()[0]  # a tensor: no wait for the device, and no break of a graph
    levels = torch.stack([(1 - level) / 2, torch.full_like(level, 0.5), (1 + level) / 2])
    return pinball_loss(torch.stack(ends, -1), target, levels).mean()


def _scores(task: Task, output: Tensor | Distribution) -> Tensor:
    if isinstance(output, Distribution):
        raise ModelError(
            f"a {type(output).__name__} output is a regression, and task is {task!r}; set "
            "task='regression', or give the network a head of plain numbers (variance=False)."
        )
    return output


def _aligned(output: Tensor, target: Tensor) -> Tensor:
    """The target in the shape of ``output``, where they differ by a last axis of 1 at most.

    ``(N, 1)`` against ``(N,)`` would otherwise broadcast to ``(N, N)``, and train on nonsense.
    """
    if output.shape == target.shape:
        return target
    if _without_last_one(output.shape) == _without_last_one(target.shape):
        return target.reshape(output.shape)
    raise DataError(
        f"target must have the shape of the prediction, {tuple(output.shape)} without classes, "
        f"got {tuple(target.shape)}; check the target column and the number of outputs."
    )


def _without_last_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[:-1]) if len(shape) > 1 and shape[-1] == 1 else tuple(shape)
