from dataclasses import fields, replace

import pytest
import torch

from stablelightning.errors import DataError
from stablelightning.model.plain_prediction import plain_prediction, sampled_prediction
from stablelightning.model.prediction import Prediction
from stablelightning.model.prediction_rows import join_rows, take_rows
from stablelightning.nn.heads import Gaussian


def sampled(rows: int = 6, samples: int = 4) -> Prediction:
    generator = torch.Generator().manual_seed(rows)
    mean = torch.randn(samples, rows, generator=generator)
    prediction = sampled_prediction(Gaussian(mean, mean.exp()), task="regression")
    return replace(prediction, lower=mean[0] - 1, upper=mean[0] + 1, level=0.9, corrected=("a",))


def test_rows_taken_apart_and_joined_are_the_prediction_again():
    whole = sampled()
    joined = join_rows([take_rows(whole, torch.arange(3)), take_rows(whole, torch.arange(3, 6))])
    for field in fields(Prediction):
        again, before = getattr(joined, field.name), getattr(whole, field.name)
        if isinstance(before, torch.Tensor | Gaussian):
            torch.testing.assert_close(again, before)
        else:
            assert again == before


def test_rows_are_taken_by_index_or_by_a_mask():
    whole = sampled()
    by_mask = take_rows(whole, torch.tensor([True, False, False, True, False, False]))
    by_index = take_rows(whole, torch.tensor([0, 3]))
    assert torch.equal(by_mask.mean, by_index.mean)
    assert torch.equal(by_mask.samples.mean, whole.samples.mean[:, [0, 3]])


def test_samples_are_let_go_where_parts_have_other_numbers_of_them():
    joined = join_rows([sampled(3, samples=4), sampled(4, samples=9)])
    assert joined.samples is None
    assert joined.samples_used == 4
    assert len(joined.mean) == 7


def test_parts_of_several_tasks_are_refused():
    with pytest.raises(DataError, match="classification and regression"):
        join_rows([sampled(), plain_prediction(torch.zeros(2, 3))])


def test_nothing_to_join_is_refused():
    with pytest.raises(DataError, match="no prediction"):
        join_rows([])
