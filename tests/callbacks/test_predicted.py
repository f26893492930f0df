from dataclasses import dataclass
from typing import NamedTuple

import numpy
import pytest
import torch
from torch import Tensor

from stablelightning.callbacks.predicted import predicted_columns, rows_by
from stablelightning.errors import DataError, ModelError
from stablelightning.model.prediction import Prediction
from stablelightning.nn.heads import Gaussian


class Boxes(NamedTuple):
    corners: Tensor
    label: Tensor


@dataclass
class Answer:
    scores: Tensor
    words: list


def prediction(task="classification", **more):
    mean = torch.rand(3, 2) if task == "classification" else torch.rand(3, 1)
    one = torch.ones(3) if task == "classification" else torch.ones(3, 1)
    return Prediction(task, mean, one, one, one, mean, 5, "loop", **more)


def test_a_prediction_gives_what_is_known_of_each_row():
    more = {
        "samples": torch.ones(5, 3, 2),
        "sets": torch.ones(3, 2, dtype=torch.bool),
        "level": 0.9,
        "answered": torch.tensor([True, False, True]),
        "reason": torch.tensor([0, 1, 0]),
    }
    columns = predicted_columns(prediction(**more))
    assert list(columns) == [
        "mean",
        "total",
        "aleatoric",
        "epistemic",
        "sets",
        "answered",
        "reason",
    ]
    assert columns["reason"] == ["answered", "aleatoric", "answered"]


def test_one_target_is_one_column():
    columns = predicted_columns(prediction("regression"))
    assert {column.ndim for column in columns.values()} == {1}


def test_a_gaussian_is_a_mean_and_its_noise():
    assert list(predicted_columns(Gaussian(torch.ones(2), torch.ones(2)))) == ["mean", "aleatoric"]


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (torch.ones(3), ["mean"]),
        ([torch.ones(3)], ["mean"]),
        ((torch.ones(3), torch.ones(3, 2)), ["output_0", "output_1"]),
        ({"a": torch.ones(3), "loss": torch.tensor(1.0), "none": None, "n": 3}, ["a"]),
        ({"a": {"b": torch.ones(3)}, "id": ["x", "y", "z"]}, ["a.b", "id"]),
        ({"a": numpy.ones(3)}, ["a"]),
        (Boxes(torch.ones(3, 4), torch.ones(3)), ["corners", "label"]),
        (Answer(torch.ones(3), ["x", "y", "z"]), ["scores", "words"]),
        (
            {"inner": prediction()},
            ["inner.mean", "inner.total", "inner.aleatoric", "inner.epistemic"],
        ),
    ],
)
def test_structures_give_their_entries_by_name(output, names):
    assert list(predicted_columns(output)) == names


@pytest.mark.parametrize("output", [None, {}, 3.0, torch.tensor(1.0), "word"])
def test_what_has_no_rows_is_refused(output):
    with pytest.raises(ModelError, match="one entry for each row"):
        predicted_columns(output)


def test_tokens_stand_side_by_side():
    columns = rows_by({"mean": torch.arange(12).view(6, 2), "id": ["a", "b", "c"]}, 3)
    assert columns["mean"].tolist()[0] == [[0, 1], [2, 3]]
    assert columns["id"] == ["a", "b", "c"]


@pytest.mark.parametrize("column", [torch.ones(4), ["a", "b"], torch.ones(0)])
def test_another_number_of_rows_is_refused(column):
    if len(column):
        with pytest.raises(DataError, match="one entry for each of the 3 rows"):
            rows_by({"mean": column}, 3)
    else:
        assert rows_by({"mean": column}, 0)["mean"] is column
