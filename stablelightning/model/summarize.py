"""From a stream of sampled outputs to a Prediction, in memory that does not grow with them."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.functional.moments import Moments
from stablelightning.functional.scores import at_least_single
from stablelightning.functional.uncertainty import (
    binary_entropy,
    entropy,
    is_label_probabilities,
    is_probabilities,
    variation_ratio,
)
from stablelightning.model.prediction import Prediction, Task
from stablelightning.nn.heads import Distribution, Gaussian, Quantiles

_OUTPUT_KEYS = ("logits", "out", "probabilities", "mean")


def select_output(output: Any) -> Tensor | Distribution:
    """Pick the tensor that is the prediction out of whatever the model returned.

    A tensor is itself, as are a ``Gaussian(mean, variance)`` and ``Quantiles``; a mapping or an
    object gives its first of ``logits``, ``out``, ``probabilities``, ``mean`` (``mean`` with
    ``variance`` beside it is a Gaussian); a tuple or list gives its first entry.

    Raises:
        ModelError: nothing of the above is there.
    """
    if isinstance(output, Tensor | Distribution):
        return output

    def read(key: str) -> Any:
        return output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)

    for key in _OUTPUT_KEYS:
        value = read(key)
        if isinstance(value, Tensor):
            variance = read("variance") if key == "mean" else None
            return Gaussian(value, variance) if isinstance(variance, Tensor) else value
    if isinstance(output, tuple | list) and output:
        return select_output(output[0])
    raise ModelError(
        f"a prediction must be a tensor, a Gaussian, a tuple that starts with one, or have one of "
        f"the keys {', '.join(_OUTPUT_KEYS)}; got {type(output).__name__}. Pass call= a function "
        "that returns the tensor."
    )


def infer_task(task: str, model: nn.Module, output: Tensor | Distribution) -> Task:
    """The task that was asked for, or the model's own ``task``, or what the output looks like.

    ``"auto"``: a Gaussian, quantiles, or one value per row ((N,) or (N, 1)), is a regression; two
    and more values per row are the classes of a classification. A regression on several targets at
    once, or independent labels, cannot be told from classes by its shape: name the task.

    Raises:
        RecipeError: an unknown task.
    """
    known = get_args(Task)
    if task == "auto":
        own = getattr(model, "task", None)
        task = str(own) if own in known else ""
        if not task:
            task = _looks_like(output)
    if task not in known:
        raise RecipeError(f"task must be auto, {', '.join(known)}, got {task!r}.")
    return task  # type: ignore[return-value]


def _looks_like(output: Tensor | Distribution) -> Task:
    one_value = isinstance(output, Distribution) or output.ndim < 2 or output.shape[1] == 1
    return "regression" if one_value else "classification"


class Summary:
    """Streams chunks of sampled outputs ``(c, N, ...)`` into the moments of one Prediction."""

    def __init__(self, task: Task, *, class_dim: int = 1) -> None:
        self.task: Task = task
        self.class_dim = class_dim
        self.centre = Moments()
        self.spread = Moments()
        self.votes: Tensor | None = None
        self.ends: tuple[Moments, Moments] | None = None
        self.level: float | None = None
        self._are_probabilities: bool | None = None

    def update_(self, output: Tensor | Distribution) -> None:
        """Add a chunk of samples."""
        if self.task == "regression":
            if isinstance(output, Distribution):
                self.centre.update_(output.mean)
                self.spread.update_(output.variance)
                if isinstance(output, Quantiles):
                    self._update_ends(output)
            else:
                self.centre.update_(output)
                self.spread.update_(torch.zeros_like(output))
            return
        if isinstance(output, Distribution):
            raise ModelError(
                f"a {type(output).__name__} output is a regression, and task is {self.task!r}; "
                "pass task='regression'."
            )
        if self.task == "multilabel":
            self._update_labels(output)
        else:
            self._update_classes(output)

    def _update_ends(self, output: Quantiles) -> None:
        """The mean of the samples' quantiles is the quantile of a distribution between them."""
        if self.ends is None:
            self.ends = Moments(), Moments()
            self.level = round(float(output.level.flatten()[0]), 6)  # without float32's last digits
        for moments, end in zip(self.ends, (output.lower, output.upper), strict=True):
            moments.update_(end)

    def _update_classes(self, output: Tensor) -> None:
        dim = self.class_dim + 1 if self.class_dim >= 0 else self.class_dim
        if output.ndim < 3 or output.shape[dim] < 2:
            raise ModelError(
                "classification needs two or more class scores per row (N, C, ...), got "
                f"{tuple(output.shape[1:])}; pass task='multilabel' or task='regression'."
            )
        probabilities = self._as_probabilities(
            output, is_probabilities(output, dim), lambda scores: scores.softmax(dim)
        )
        if output.dtype != probabilities.dtype:  # half precision sums to 1 within a percent only
            probabilities = probabilities / probabilities.sum(dim, keepdim=True)
        self.centre.update_(probabilities)
        self.spread.update_(entropy(probabilities, dim=dim))
        chosen = probabilities.argmax(dim, keepdim=True)
        votes = torch.zeros_like(probabilities).scatter_(dim, chosen, 1).sum(0)
        self.votes = votes if self.votes is None else self.votes + votes

    def _update_labels(self, output: Tensor) -> None:
        probabilities = self._as_probabilities(
            output, is_label_probabilities(output), torch.Tensor.sigmoid
        )
        self.centre.update_(probabilities)
        self.spread.update_(binary_entropy(probabilities))
        votes = (probabilities > 0.5).float().sum(0)
        self.votes = votes if self.votes is None else self.votes + votes

    def _as_probabilities(
        self, output: Tensor, looks: bool, squash: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The first chunk says whether the model returns probabilities or logits."""
        if self._are_probabilities is None:
            self._are_probabilities = looks
        if not self._are_probabilities:
            return squash(at_least_single(output))
        if not looks and not output.isnan().any():
            raise ModelError(
                "outputs must be probabilities in every sample or in none, and these looked like "
                "probabilities at first and later did not; return probabilities, or pass call= a "
                "function that does."
            )
        return at_least_single(output)

    def standard_error(self) -> Tensor:
        """Standard error of the mean, in the mean's shape."""
        return (self.centre.variance(correction=1) / max(self.centre.count, 1)).sqrt()

    def prediction(self, *, engine: str, samples: Any = None) -> Prediction:
        """Close the stream."""
        mean, spread = self.centre.mean, self.spread.mean
        assert mean is not None
        assert spread is not None
        count = self.centre.count
        ratio = None
        if self.task == "regression":
            epistemic = self.centre.variance()
            total = spread + epistemic
        else:
            assert self.votes is not None
            if self.task == "multilabel":
                total = binary_entropy(mean)
                ratio = 1 - torch.maximum(self.votes, count - self.votes) / count
            else:
                total = entropy(mean, dim=self.class_dim)
                ratio = variation_ratio(self.votes, dim=self.class_dim)
            epistemic = (total - spread).clamp(min=0)  # rounding can leave -1e-8
        return Prediction(
            task=self.task,
            mean=mean,
            total=total,
            aleatoric=spread,
            epistemic=epistemic,
            standard_error=self.standard_error(),
            samples_used=count,
            engine=engine,
            variation_ratio=ratio,
            samples=samples,
            lower=None if self.ends is None else self.ends[0].mean,
            upper=None if self.ends is None else self.ends[1].mean,
            level=self.level,
        )
