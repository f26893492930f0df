"""A Prediction: names for the same numbers, and clear words where a name does not fit the task."""

import dataclasses

import pytest
import torch

from stablelightning.errors import ModelError
from stablelightning.model import Prediction


def make(task: str) -> Prediction:
    ratio = None if task == "regression" else torch.zeros(3)
    return Prediction(
        task=task,
        mean=torch.zeros(3, 2),
        total=torch.full((3,), 4.0),
        aleatoric=torch.full((3,), 3.0),
        epistemic=torch.ones(3),
        standard_error=torch.zeros(3, 2),
        samples_used=7,
        engine="loop",
        variation_ratio=ratio,
        samples={"kept": torch.zeros(7, 3)},
    )


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_entropies_are_other_names_of_the_parts(task: str) -> None:
    prediction = make(task)
    assert prediction.predictive_entropy is prediction.total
    assert prediction.expected_entropy is prediction.aleatoric
    assert prediction.mutual_information is prediction.epistemic
    for name in ("variance", "std"):
        with pytest.raises(ModelError, match=f"variance belongs to regression.*{task}"):
            getattr(prediction, name)


def test_variances_are_other_names_of_the_parts() -> None:
    prediction = make("regression")
    assert prediction.variance is prediction.total
    assert torch.equal(prediction.std, torch.full((3,), 2.0))
    for name in ("predictive_entropy", "expected_entropy", "mutual_information"):
        with pytest.raises(ModelError, match=f"{name} belongs to classification.*regression"):
            getattr(prediction, name)


def test_to_moves_every_tensor_and_changes_nothing_else() -> None:
    prediction = make("classification")
    moved = prediction.to("meta")
    for field in dataclasses.fields(Prediction):
        value, other = getattr(prediction, field.name), getattr(moved, field.name)
        if isinstance(value, torch.Tensor):
            assert other.device.type == "meta"
            assert value.device.type == "cpu"
        elif field.name != "samples":
            assert other == value
    assert moved.samples["kept"].device.type == "meta"


def test_a_prediction_is_not_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make("regression").mean = torch.ones(3)


def test_repr_is_one_short_line() -> None:
    assert repr(make("regression")) == (
        "Prediction(task='regression', mean=(3, 2), samples_used=7, engine='loop')"
    )
