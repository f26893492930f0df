"""Golden numbers and properties of the little statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import DataError
from stablelightning.report.statistics import auroc, wilson_interval

scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(scores, scores)
def test_auroc_is_the_share_of_ordered_pairs(known: list[float], unknown: list[float]) -> None:
    pairs = [(u > k) + 0.5 * (u == k) for k in known for u in unknown]
    assert auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_large_variances_are_not_tied() -> None:
    # A sigmoid would send all of these to exactly 1, and the AUROC to 0.5.
    assert auroc(torch.tensor([1e4, 2e4]), torch.tensor([3e4, 4e4])) == 1.0


def test_nan_has_no_auroc_and_an_empty_set_is_an_error() -> None:
    assert math.isnan(auroc([0.1, math.nan], [0.2]))
    with pytest.raises(DataError, match="got 2 known and 0 unknown"):
        auroc([0.1, 0.2], [])


def test_wilson_interval_of_one_in_ten() -> None:
    # Brown, Cai & DasGupta 2001, Statistical Science 16(2), by their equation 4.
    low, high = wilson_interval(np.array([1.0]), np.array([10.0]))
    assert low[0] == pytest.approx(0.0179, abs=1e-4)
    assert high[0] == pytest.approx(0.4042, abs=1e-4)


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_stays_in_range(trials: int, share: float) -> None:
    successes = round(share * trials)
    low, high = wilson_interval(np.array([successes]), np.array([trials]))
    assert 0 <= low[0] <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high[0] <= 1
