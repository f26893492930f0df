"""Risk and coverage: closed forms, ties, and every order of a few rows."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage_curve,
)

rows = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


def unpacked(pairs: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    score, wrong = zip(*pairs, strict=True)
    return torch.tensor(score, dtype=torch.float64), torch.tensor(wrong, dtype=torch.float64)


@given(rows)
def test_ties_count_in_the_mean_of_all_their_orders(pairs: list[tuple[int, bool]]) -> None:
    score, wrong = unpacked(pairs)
    curves = []
    for order in permutations(range(len(pairs))):
        if all(score[a] <= score[b] for a, b in pairwise(order)):
            lost = np.cumsum([0.0, *wrong[list(order)].tolist()])
            curves.append(lost)
    lost = np.mean(curves, axis=0)
    answered = np.arange(1, len(pairs) + 1)
    assert aurc(score, wrong).item() == pytest.approx((lost[1:] / answered).mean(), abs=1e-12)
    area = (lost[1:] + lost[:-1]).sum() / 2 / len(pairs) ** 2
    assert augrc(score, wrong).item() == pytest.approx(area, abs=1e-12)
    half = int(np.ceil(len(pairs) / 2))
    found = risk_at_coverage(score, wrong, coverage=0.5).item()
    assert found == pytest.approx(lost[half] / half, abs=1e-12)


@given(rows, st.randoms())
def test_the_order_of_the_rows_changes_nothing(pairs: list[tuple[int, bool]], shuffle) -> None:  # type: ignore[no-untyped-def]
    score, wrong = unpacked(pairs)
    order = list(range(len(pairs)))
    shuffle.shuffle(order)
    for statistic in (aurc, augrc, excess_aurc):
        assert torch.equal(statistic(score, wrong), statistic(score[order], wrong[order]))


@given(rows)
def test_excess_is_zero_for_the_losses_themselves(pairs: list[tuple[int, bool]]) -> None:
    score, wrong = unpacked(pairs)
    assert excess_aurc(wrong, wrong).item() == 0
    assert excess_aurc(score, wrong).item() >= 0


def test_a_score_that_knows_nothing_has_the_error_rate_everywhere() -> None:
    wrong = torch.tensor([1, 0, 0, 0, 1])
    score = torch.zeros(5)
    assert aurc(score, wrong).item() == pytest.approx(0.4)
    assert augrc(score, wrong).item() == pytest.approx(0.2)
    assert risk_at_coverage(score, wrong, coverage=0.2).item() == pytest.approx(0.4)
    assert coverage_at_risk(score, wrong, risk=0.4).item() == 1
    assert coverage_at_risk(score, wrong, risk=0.39).item() == 0


def test_losses_need_not_be_errors() -> None:
    score, loss = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 4.0])
    assert aurc(score, loss).item() == pytest.approx((0.5 + 0.25 + 1.5) / 3)
    best = (0 + 0.25 + 1.5) / 3
    assert excess_aurc(score, loss).item() == pytest.approx((0.5 + 0.25 + 1.5) / 3 - best)


def test_shares_that_do_not_come_out_even_in_binary() -> None:
    score = torch.arange(10.0)
    wrong = (score >= 7).long()
    assert risk_at_coverage(score, wrong, coverage=0.7).item() == 0
    assert coverage_at_risk(score, wrong, risk=0.3).item() == 1  # 3 of 10


def test_the_curve_ends_with_all_rows() -> None:
    curve = risk_coverage_curve(torch.tensor([0.3, 0.1, 0.3]), torch.tensor([1, 0, 0]))
    assert curve.threshold.tolist() == pytest.approx([0.1, 0.3])
    assert curve.coverage.tolist() == pytest.approx([1 / 3, 1])
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3])


def test_a_million_rows_keep_their_digits() -> None:
    n = 1_000_000
    score = torch.arange(n, dtype=torch.float64)
    wrong = (score >= n // 2).double()
    expected = sum((i - n // 2) / i for i in range(n // 2 + 1, n + 1)) / n
    assert aurc(score, wrong).item() == pytest.approx(expected, rel=1e-9)


def test_bad_settings_and_input() -> None:
    score, wrong = torch.ones(2), torch.zeros(2)
    with pytest.raises(RecipeError, match=r"coverage must be in \(0, 1\]"):
        risk_at_coverage(score, wrong, coverage=0)
    with pytest.raises(RecipeError, match="risk must be >= 0"):
        coverage_at_risk(score, wrong, risk=-0.1)
    with pytest.raises(DataError, match="must not be NaN"):
        aurc(torch.tensor([torch.nan, 1.0]), wrong)
    with pytest.raises(DataError, match="at least one row"):
        aurc(torch.ones(0), torch.ones(0))
    with pytest.raises(DataError, match="one loss, got 3 for 2 rows"):
        aurc(score, torch.ones(3))
