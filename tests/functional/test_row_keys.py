import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import DataError
from stablelightning.functional.row_keys import mixed_bits, row_keys


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 9), st.sampled_from([torch.float32, torch.int64]))
def test_a_row_has_the_same_key_in_any_batch(rows, width, dtype):
    x = torch.randint(0, 50, (rows, width)).to(dtype)
    order = torch.randperm(rows)
    assert torch.equal(row_keys(x)[order], row_keys(x[order]))
    assert torch.equal(row_keys(x)[:1], row_keys(x[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.float64])
def test_rows_that_differ_in_one_small_number_have_other_keys(dtype):
    """Small whole numbers as floats have zeros in all their low bits."""
    x = torch.zeros(200, 199)
    x[torch.arange(199), torch.arange(199)] = 1
    assert row_keys(x.to(dtype)).unique().numel() == 200


def test_every_combination_of_bits_is_told_apart():
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 12)
    assert row_keys(x).unique().numel() == 2**12


def test_words_and_their_complements_are_told_apart():
    """A shift that copies the sign would mix them alike, and leave the top bit empty."""
    words = torch.randint(-(2**63), 2**63 - 1, (200,), generator=torch.Generator().manual_seed(0))
    both = torch.cat([words, ~words])
    assert mixed_bits(both).unique().numel() == 400
    assert row_keys(both.unsqueeze(1)).unique().numel() == 400
    share = (row_keys(both.unsqueeze(1)) < 0).float().mean()
    assert 0.35 < share < 0.65


def test_all_tensors_count_and_in_their_order():
    a, b = torch.arange(6.0).view(3, 2), torch.zeros(3, 2)
    keys = [row_keys(a), row_keys(a, b), row_keys(b, a)]
    assert torch.cat(keys).unique().numel() == 9


def test_rows_without_content_are_alike():
    assert row_keys(torch.empty(3, 0)).unique().numel() == 1


@pytest.mark.parametrize("tensors", [(), (torch.zeros(2), torch.zeros(3))])
def test_what_has_no_common_rows_is_refused(tensors):
    with pytest.raises(DataError, match="common first axis"):
        row_keys(*tensors)
