"""What is scored, and the sums from which the scores of a whole test set come."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.scores import (
    binary_brier_score,
    binary_negative_log_likelihood,
    brier_score,
    gaussian_coverage,
    gaussian_negative_log_likelihood,
    negative_log_likelihood,
)
from stablelightning.model.prediction import Prediction, Task
from stablelightning.model.summarize import infer_task
from stablelightning.nn.heads import Distribution

#: Equal-width bins of the top probability, as is usual for the expected calibration error.
CALIBRATION_BINS = 15

#: What is averaged as a square and told as its root.
_ROOTS = ("rmse", "rmse_mc", "rmse_calibrated", "rmse_answered")


def task_and_class_dim(
    task: str, pl_module: L.LightningModule, output: Tensor | Distribution, target: Tensor | None
) -> tuple[Task, int]:
    """Tell the task and where the classes are, from the output and, better, from the target.

    With ``"auto"`` and no ``task`` on the module: a target of whole numbers in the output's shape
    without one axis means classes on that axis. A target in the output's own shape is a regression,
    or independent labels if it holds nothing but 0 and 1. Where the target does not tell,
    :func:`~stablelightning.model.summarize.infer_task` looks at the output alone.
    """
    named = infer_task(task, pl_module, output)
    if target is None or isinstance(output, Distribution):
        return named, 1
    class_dim = _class_dim(output.shape, target.shape)
    if task != "auto" or getattr(pl_module, "task", None) is not None:
        return named, class_dim or 1
    if _same_but_for_ones(output.shape, target.shape):
        return ("multilabel" if _are_labels(target) else "regression"), 1
    if class_dim is not None and not target.is_floating_point():
        return "classification", class_dim
    return named, 1


def _class_dim(output: torch.Size, target: torch.Size) -> int | None:
    """The axis that the target lacks, the second one if several fit; None if none does."""
    for dim in range(1, len(output)):
        if output[:dim] + output[dim + 1 :] == target and output[dim] > 1:
            return dim
    return None


def _same_but_for_ones(a: torch.Size, b: torch.Size) -> bool:
    return [n for n in a[1:] if n != 1] == [n for n in b[1:] if n != 1] and a[:1] == b[:1]


def _are_labels(target: Tensor) -> bool:
    if target.dtype == torch.bool:
        return True
    zero, one = target == 0, target == 1
    # Real-valued targets that happen to be all 0, or all 1, in one batch are no labels yet.
    both = not target.is_floating_point() or bool(zero.any() and one.any())
    return both and bool((zero | one).all())


def aligned_target(task: Task, mean: Tensor, target: Tensor, class_dim: int) -> Tensor:
    """The target in the shape of the mean (without the classes).

    ``(N,)`` against ``(N, 1)`` is settled; so is ``(N, L)`` against the ``(N * L, C)`` of a
    language model that flattens its tokens, and a one-hot target of a classification.

    Raises:
        DataError: the shapes do not fit.
    """
    expected = list(mean.shape)
    if task == "classification":
        if target.shape == mean.shape:
            return target.argmax(class_dim)
        if target.is_floating_point() and bool((target != target.round()).any()):
            raise DataError(
                "the target of a classification must be class indices, got numbers in between; "
                "name the task: EstimateUncertainty(task='regression')."
            )
        del expected[class_dim]
        if mean.ndim == 2 and target.numel() == mean.shape[0]:
            return target.reshape(-1)
    elif _same_but_for_ones(mean.shape, target.shape):
        return target.reshape(mean.shape)
    if list(target.shape) != expected:
        raise DataError(
            f"the target of a {task} must have the shape {tuple(expected)}, got "
            f"{tuple(target.shape)}; name the task (task=...), or return what belongs together "
            "from EstimateUncertainty.inputs_and_target."
        )
    return target


def scores_of(
    task: Task, mean: Tensor, target: Tensor, *, variance: Tensor | None = None
) -> dict[str, Tensor]:
    """One number per element and score.

    Args:
        task: what kind of prediction it is.
        mean: ``(M, C)`` probabilities; ``(M,)`` label probabilities or values.
        target: ``(M,)``.
        variance: ``(M,)`` for a regression that says how sure it is.
    """
    if task == "classification":
        return {
            "accuracy": mean.argmax(1) == target,
            "nll": negative_log_likelihood(mean, target),
            "brier": brier_score(mean, target),
        }
    if task == "multilabel":
        return {
            "accuracy": (mean > 0.5) == (target > 0.5),
            "nll": binary_negative_log_likelihood(mean, target),
            "brier": binary_brier_score(mean, target),
        }
    scores = {"rmse": (mean - target).square()}
    if variance is not None:
        scores["nll"] = gaussian_negative_log_likelihood(mean, variance, target)
        scores["coverage_90"] = gaussian_coverage(mean, variance, target, level=0.9)
    return scores


def decision_scores(
    prediction: Prediction, target: Tensor | None, fresh: Tensor
) -> dict[str, Tensor]:
    """What is told of the sets, the intervals and the answers of a batch, one number per row.

    Args:
        prediction: corrected, one row per row of the data.
        target: ``(N,)``, ``None`` where there is none.
        fresh: ``(N,)`` rows that count.

    Returns:
        ``set_size`` or ``width``, ``level`` and, with a target, ``coverage``; ``answered`` and,
        with a target, ``accuracy_answered`` or ``rmse_answered`` of the rows that are answered.
    """
    scores: dict[str, Tensor] = {}
    if prediction.sets is not None:
        scores["set_size"] = prediction.sets.sum(1)
        if target is not None:
            index = target.long().clamp(0, prediction.sets.shape[1] - 1)
            scores["coverage"] = prediction.sets.gather(1, index.unsqueeze(1)).squeeze(1)
    elif prediction.lower is not None and prediction.upper is not None:
        scores["width"] = prediction.upper - prediction.lower
        if target is not None:
            scores["coverage"] = (prediction.lower <= target) & (target <= prediction.upper)
    if scores and prediction.level is not None:
        scores["level"] = torch.full((len(fresh),), prediction.level, dtype=torch.float64)
    counted = {name: each[fresh.to(each.device)] for name, each in scores.items()}
    if prediction.sets is not None and target is not None:
        known = fresh.to(target.device) & _has_class(prediction, target)
        counted["coverage"] = scores["coverage"][known]
    if prediction.answered is not None:
        counted |= _answered_scores(prediction, prediction.answered, target, fresh)
    return counted


def _answered_scores(
    prediction: Prediction, answered: Tensor, target: Tensor | None, fresh: Tensor
) -> dict[str, Tensor]:
    scores = {"answered": answered[fresh]}
    counts = fresh & answered.to(fresh.device)
    if target is not None and prediction.task == "classification":
        counts = counts & _has_class(prediction, target)
        scores["accuracy_answered"] = (prediction.mean.argmax(1) == target)[counts]
    elif target is not None and prediction.task == "regression":
        scores["rmse_answered"] = (prediction.mean - target).square()[counts]
    return scores


def _has_class(prediction: Prediction, target: Tensor) -> Tensor:
    """The rows whose class is known: others are marked by a number that is no class."""
    return (target >= 0) & (target < prediction.mean.shape[1])


@dataclass
class Sums:
    """Running sums of scores: plain numbers that add up over batches and processes.

    Example:
        >>> sums = Sums()
        >>> sums.add({"accuracy": torch.tensor([1.0, 0.0, 1.0, 1.0])})
        >>> sums.means()
        {'accuracy': 0.75}
    """

    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bins: dict[str, Tensor] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor], *, suffix: str = "") -> None:
        """Add the elements of each score."""
        for name, each in values.items():
            key = name + suffix
            # On the CPU, in double: MPS has no float64, and a million float32 terms lose digits.
            total = each.detach().cpu().double().sum().item()
            self.totals[key] = self.totals.get(key, 0.0) + total
            self.counts[key] = self.counts.get(key, 0) + each.numel()

    def add_calibration(self, probabilities: Tensor, target: Tensor, *, suffix: str = "") -> None:
        """Sort ``(M, C)`` probabilities by their largest entry into bins.

        Source:
            Guo et al. 2017, arXiv:1706.04599, equation 3.
        """
        confidence, chosen = probabilities.detach().cpu().double().max(1)
        correct = (chosen == target.cpu()).double()
        # A bin holds its upper edge, so that full confidence falls into the last one.
        number = (confidence * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
        added = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
        for row, weight in enumerate((torch.ones_like(correct), confidence, correct)):
            added[row] = torch.bincount(number, weight, minlength=CALIBRATION_BINS)
        key = "ece" + suffix
        self.bins[key] = self.bins[key] + added if key in self.bins else added

    def means(self) -> dict[str, float]:
        """The score of everything that was added."""
        result = {key: self.totals[key] / n for key, n in self.counts.items() if n}
        result.update({key: result[key] ** 0.5 for key in _ROOTS if key in result})
        for key, (count, confidence, correct) in self.bins.items():
            if count.sum() > 0:
                result[key] = ((confidence - correct).abs().sum() / count.sum()).item()
        return result

    @classmethod
    def merged(cls, parts: Iterable["Sums"]) -> "Sums":
        """The sums of several processes as one."""
        whole = cls()
        for part in parts:
            for key, total in part.totals.items():
                whole.totals[key] = whole.totals.get(key, 0.0) + total
                whole.counts[key] = whole.counts.get(key, 0) + part.counts[key]
            for key, bins in part.bins.items():
                whole.bins[key] = whole.bins[key] + bins if key in whole.bins else bins
        return whole
