"""Groups of equal score, and the histogram that stands in for them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import DataError
from stablelightning.functional.rank_groups import (
    BINS,
    check_both_kinds,
    harmonic_between,
    histogram_groups,
    histogram_index,
    marked_first,
    marked_last,
    reversed_groups,
    tie_groups,
)

numbers = st.floats(allow_nan=False, width=32)


@given(numbers, numbers)
def test_bins_keep_the_order_of_scores(a: float, b: float) -> None:
    low, high = histogram_index(torch.tensor([min(a, b), max(a, b)])).tolist()
    assert 0 <= low <= high < BINS


@given(st.floats(1e-6, 1e6), st.sampled_from([-1, 1]))
def test_scores_a_thousandth_apart_never_share_a_bin(size: float, sign: int) -> None:
    score = sign * torch.tensor([size, size * 1.001], dtype=torch.float64)
    assert histogram_index(score).unique().numel() == 2


@given(st.lists(numbers, min_size=1, max_size=20))
def test_a_bin_is_named_by_its_end_near_zero(values: list[float]) -> None:
    scores = torch.tensor(values)
    counts = torch.zeros(BINS, dtype=torch.float64).index_add_(
        0, histogram_index(scores), torch.ones(len(values), dtype=torch.float64)
    )
    groups = histogram_groups(counts, counts)
    assert groups.rows.sum() == len(values)
    assert bool((groups.score.diff() > 0).all())
    assert torch.equal(histogram_index(groups.score), histogram_index(scores).unique())


def test_the_order_within_groups_changes_no_sum() -> None:
    score = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 3.0])
    mark = torch.tensor([1, 0, 1, 1, 0, 0])
    groups = tie_groups(score, mark)
    for ordered in (marked_first(groups), marked_last(groups), reversed_groups(groups)):
        assert ordered.rows.sum() == 6
        assert ordered.mark.sum() == 3
    assert marked_last(groups).mark.tolist() == [0, 1, 0, 2, 0]
    assert marked_first(groups).mark.tolist() == [1, 0, 2, 0, 0]


def test_harmonic_sums() -> None:
    start = torch.tensor([0.0, 3.0, 10.0, 10.0], dtype=torch.float64)
    end = torch.tensor([4.0, 3.0, 11.0, 5000.0], dtype=torch.float64)
    expected = [
        sum(1 / i for i in range(int(a) + 1, int(b) + 1)) for a, b in zip(start, end, strict=True)
    ]
    assert harmonic_between(start, end).tolist() == pytest.approx(expected, rel=1e-12)


def test_one_kind_alone_is_refused() -> None:
    with pytest.raises(DataError, match="got 2 in and 0 out of distribution"):
        check_both_kinds(tie_groups(torch.tensor([1.0, 2.0]), torch.tensor([0, 0])))
