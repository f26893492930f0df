from dataclasses import replace

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from stablelightning.callbacks.scoring import (
    Sums,
    aligned_target,
    decision_scores,
    scores_of,
    task_and_class_dim,
)
from stablelightning.errors import DataError
from stablelightning.model.plain_prediction import plain_prediction
from stablelightning.nn.heads import Gaussian

MODULE = L.LightningModule()


def classes(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % 3


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        pytest.param(torch.randn(4, 3), classes(4), ("classification", 1), id="classes"),
        pytest.param(torch.randn(2, 3, 5, 6), classes(2, 5, 6), ("classification", 1), id="pixels"),
        pytest.param(torch.randn(2, 5, 3), classes(2, 5), ("classification", 2), id="tokens"),
        pytest.param(torch.randn(10, 3), classes(2, 5), ("classification", 1), id="flat-tokens"),
        pytest.param(torch.randn(2, 5, 5), classes(2, 5), ("classification", 1), id="both-fit"),
        pytest.param(torch.randn(4, 3), torch.randn(4, 3), ("regression", 1), id="many-targets"),
        pytest.param(torch.randn(4, 2), classes(4, 2) % 2, ("multilabel", 1), id="labels"),
        pytest.param(torch.randn(4), torch.tensor([0, 1, 1, 0]), ("multilabel", 1), id="binary"),
        pytest.param(
            torch.randn(4, 1), torch.tensor([0.0, 1, 1, 0]), ("multilabel", 1), id="binary-float"
        ),
        pytest.param(torch.randn(4, 1), torch.zeros(4), ("regression", 1), id="all-zero"),
        pytest.param(torch.randn(4, 1), torch.randn(4), ("regression", 1), id="values"),
        pytest.param(
            Gaussian(torch.randn(4), torch.ones(4)), torch.randn(4), ("regression", 1), id="head"
        ),
        pytest.param(torch.randn(4, 3), None, ("classification", 1), id="no-target"),
        pytest.param(torch.randn(4, 1), None, ("regression", 1), id="no-target-one-value"),
    ],
)
def test_task_is_read_from_target_and_output(output, target, expected):
    assert task_and_class_dim("auto", MODULE, output, target) == expected


def test_a_named_task_is_not_second_guessed():
    labels = classes(4, 2) % 2
    assert task_and_class_dim("regression", MODULE, torch.randn(4, 2), labels)[0] == "regression"
    module = L.LightningModule()
    module.task = "classification"
    assert task_and_class_dim("auto", module, torch.randn(4, 2), labels)[0] == "classification"


def test_target_takes_the_shape_of_the_prediction():
    one_hot = torch.eye(3)
    assert aligned_target("classification", one_hot, one_hot, 1).tolist() == [0, 1, 2]
    assert aligned_target("classification", torch.rand(10, 3), classes(2, 5), 1).shape == (10,)
    assert aligned_target("regression", torch.rand(4, 1), torch.rand(4), 1).shape == (4, 1)
    assert aligned_target("multilabel", torch.rand(4), torch.rand(4, 1), 1).shape == (4,)


@pytest.mark.parametrize(
    ("task", "mean", "target"),
    [
        ("regression", torch.rand(4, 3), torch.rand(4)),
        ("regression", torch.rand(4, 3), torch.rand(3, 4)),
        ("multilabel", torch.rand(4, 3), torch.rand(4)),
        ("classification", torch.rand(4, 3), torch.zeros(5)),
        ("classification", torch.rand(4, 3), torch.rand(4)),
    ],
)
def test_a_target_that_does_not_fit_is_refused(task, mean, target):
    with pytest.raises(DataError, match="task="):
        aligned_target(task, mean, target, 1)


@given(
    st.integers(2, 5), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 1000)
)
def test_sums_over_batches_and_processes_are_those_of_the_whole(classes, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    probabilities = torch.randn(rows, classes, generator=generator).mul(3).softmax(1)
    target = torch.randint(0, classes, (rows,), generator=generator)
    whole, parts = Sums(), []
    for batches, sums in (([rows], whole), (sizes, None)):
        for p, t in zip(probabilities.split(batches), target.split(batches), strict=True):
            each = sums or Sums()
            each.add(scores_of("classification", p, t))
            each.add_calibration(p, t)
            parts += [] if sums else [each]
    merged = Sums.merged(parts).means()
    assert merged == pytest.approx(whole.means(), abs=1e-12)
    expected = multiclass_calibration_error(probabilities, target, classes, n_bins=15, norm="l1")
    assert merged["ece"] == pytest.approx(expected.item(), abs=1e-5)
    assert merged["accuracy"] == pytest.approx((probabilities.argmax(1) == target).double().mean())


def test_root_is_taken_of_the_mean_square():
    sums = Sums()
    sums.add(scores_of("regression", torch.tensor([1.0]), torch.tensor([4.0])))
    sums.add(scores_of("regression", torch.tensor([1.0]), torch.tensor([5.0])))
    assert sums.means() == {"rmse": pytest.approx(12.5**0.5)}


def test_no_elements_give_no_score():
    sums = Sums()
    sums.add({"nll": torch.zeros(0)})
    sums.add_calibration(torch.zeros(0, 3), torch.zeros(0))
    assert sums.means() == {}


def test_values_of_single_precision_are_summed_without_loss():
    sums = Sums()
    sums.add({"nll": torch.full((2_000_000,), 0.1)})
    assert sums.means()["nll"] == pytest.approx(float(torch.tensor(0.1)), abs=1e-12)


def test_rows_of_no_class_have_a_set_and_an_answer_and_are_not_scored():
    held = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
    prediction = replace(
        plain_prediction(held), sets=held > 0.3, level=0.9, answered=torch.tensor([True] * 3)
    )
    target, fresh = torch.tensor([0, 0, -100]), torch.ones(3, dtype=torch.bool)
    scores = decision_scores(prediction, target, fresh)
    assert scores["coverage"].tolist() == scores["accuracy_answered"].tolist() == [True, False]
    assert len(scores["set_size"]) == len(scores["answered"]) == 3
