"""The adding problem: two marks, one sum, and the same sequences from the same seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.data import AddingData
from stablelightning.data.adding import BASELINE_MSE
from stablelightning.errors import RecipeError
from tests.data.small import rows_of


def parts(data):
    return [rows_of(loader()) for loader in (data.val_dataloader, data.test_dataloader)]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 60), st.integers(0, 99))
def test_one_mark_in_each_half_and_the_sum_of_the_marked(length, seed):
    data = AddingData(length=length, rows=50, batch_size=8, seed=seed)
    for inputs, target in parts(data):
        numbers, marks = inputs.unbind(2)
        half = length // 2
        assert marks[:, :half].sum(1).tolist() == [1] * len(marks)
        assert marks[:, half:].sum(1).tolist() == [1] * len(marks)
        assert ((numbers >= 0) & (numbers < 1)).all()
        torch.testing.assert_close((numbers * marks).sum(1), target)


def test_sizes_of_the_splits():
    data = AddingData(length=4, rows=100, val_fraction=0.2, test_fraction=0.1)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [len(loader.dataset) for loader in loaders] == [70, 20, 10]
    assert data.test_rows.tolist() == list(range(90, 100))


def test_splits_share_no_sequence():
    data = AddingData(length=20, rows=200)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    together = torch.cat([rows_of(loader)[0] for loader in loaders])
    assert len(torch.unique(together, dim=0)) == 200


def test_the_seed_decides_alone():
    torch.manual_seed(1)
    first = parts(AddingData(length=9, rows=40, seed=3))
    torch.manual_seed(2)
    again = parts(AddingData(length=9, rows=40, seed=3))
    other = parts(AddingData(length=9, rows=40, seed=4))
    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], other[0][0])


def test_who_says_the_mean_has_the_error_of_the_baseline():
    _, target = rows_of(AddingData(length=4, rows=40_000, test_fraction=0.5).test_dataloader())
    assert ((target - 1) ** 2).mean() == pytest.approx(BASELINE_MSE, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length": 1}, "length must be a whole number >= 2"),
        ({"rows": 9}, "rows must be a whole number >= 10"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"val_fraction": 1.0}, "val_fraction must be"),
    ],
    ids=str,
)
def test_bad_settings(settings, words):
    with pytest.raises(RecipeError, match=words):
        AddingData(**settings)
