"""The defaults of each task against closed forms, and shapes that must not meet."""

import math

import pytest
import torch
import torch.nn.functional as F

from stablelightning.errors import DataError, ModelError
from stablelightning.model.task import TASKS
from stablelightning.nn import Gaussian

CLASSES, LABELS, NUMBERS = TASKS["classification"], TASKS["multilabel"], TASKS["regression"]


def measured(task, output, target, *, logits: bool = True) -> dict[str, float]:
    metrics = task.metrics(output)
    for metric in metrics.values():
        metric.update(*task.compared(output, target, logits=logits))
    return {name: metric.compute().item() for name, metric in metrics.items()}


def test_dense_classes_score_as_flat_ones() -> None:
    output, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    flat = output.movedim(1, -1).reshape(-1, 3), target.reshape(-1)
    torch.testing.assert_close(CLASSES.loss(output, target), CLASSES.loss(*flat))
    assert measured(CLASSES, output, target) == pytest.approx(measured(CLASSES, *flat))


def test_ignored_pixels_count_nowhere() -> None:
    output, target = torch.eye(3) * 9, torch.tensor([0, 1, 0])
    assert measured(CLASSES, output, target)["accuracy"] == pytest.approx(2 / 3)
    ignored = torch.tensor([0, 1, -100])
    assert measured(CLASSES, output, ignored)["accuracy"] == 1.0
    assert CLASSES.loss(output, ignored) < 0.01 < CLASSES.loss(output, target)


def test_class_targets_may_come_as_a_column() -> None:
    output, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(CLASSES.loss(output, target[:, None]), F.cross_entropy(output, target))


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_any_number_of_labels(labels: int) -> None:
    target = torch.randint(2, (30, labels))
    right = 8.0 * (target * 2 - 1)
    assert measured(LABELS, right, target) == {"accuracy": 1.0, "f1": 1.0}
    assert LABELS.loss(right, target).item() == pytest.approx(math.log1p(math.exp(-8)), rel=1e-3)


def test_label_logits_in_the_unit_interval_are_all_yes() -> None:
    output, target = torch.full((4, 2), 0.3), torch.ones(4, 2)
    assert measured(LABELS, output, target, logits=True)["accuracy"] == 1.0
    assert measured(LABELS, output, target, logits=False)["accuracy"] == 0.0


def test_gaussian_loss_is_smallest_at_the_true_noise() -> None:
    target = torch.tensor([-1.0, 1.0])
    losses = [
        NUMBERS.loss(Gaussian(torch.zeros(2), torch.full((2,), variance)), target).item()
        for variance in (0.5, 1.0, 2.0)
    ]
    assert min(losses) == losses[1] == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5)


def test_regression_metrics() -> None:
    output, target = torch.tensor([[1.0], [5.0]]), torch.tensor([1.0, 2.0])
    assert measured(NUMBERS, output, target) == pytest.approx({"rmse": 3 / 2**0.5, "mae": 1.5})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_of_every_precision_are_at_least_single(dtype: torch.dtype) -> None:
    expected = torch.promote_types(dtype, torch.float32)
    scores = torch.randn(4, 3).to(dtype)
    assert CLASSES.loss(scores, torch.tensor([0, 1, 2, 0])).dtype == expected
    assert LABELS.loss(scores, torch.ones(4, 3)).dtype == expected
    assert NUMBERS.loss(scores, torch.ones(4, 3)).dtype == expected
    assert NUMBERS.loss(Gaussian(scores, scores.exp()), torch.ones(4, 3)).dtype == expected


def test_shapes_that_would_broadcast_are_refused() -> None:
    for task, output, target in (
        (NUMBERS, torch.zeros(4, 2), torch.zeros(4)),
        (NUMBERS, torch.zeros(4), torch.zeros(5)),
        (LABELS, torch.zeros(4, 3), torch.zeros(4)),
        (CLASSES, torch.zeros(4, 3), torch.zeros(3).long()),
    ):
        with pytest.raises(DataError, match="target must have the shape of the prediction"):
            task.loss(output, target)


@pytest.mark.parametrize("output", [torch.zeros(4), torch.zeros(4, 1)])
def test_one_score_is_no_classification(output: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="two or more class scores"):
        CLASSES.loss(output, torch.zeros(4).long())


@pytest.mark.parametrize("task", [CLASSES, LABELS])
def test_a_gaussian_is_a_regression(task) -> None:
    output = Gaussian(torch.zeros(4), torch.ones(4))
    with pytest.raises(ModelError, match="set task='regression'"):
        task.loss(output, torch.zeros(4))
