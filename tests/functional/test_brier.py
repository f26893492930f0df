"""The parts of the Brier score: their sum, their signs, and Murphy's own case."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.functional.brier import brier_decomposition
from stablelightning.functional.scores import binary_brier_score, brier_score


@given(st.integers(2, 5), st.integers(1, 20), st.integers(0, 10_000))
def test_the_parts_are_the_score(classes: int, bins: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(30, classes, generator=g, dtype=torch.float64)).softmax(1)
    y = torch.randint(classes, (30,), generator=g)
    parts = brier_decomposition(p, y, bins=bins)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert parts.score.item() == pytest.approx(brier_score(p, y).mean().item())
    assert total.item() == pytest.approx(parts.score.item())
    assert parts.reliability >= 0
    assert parts.resolution >= 0
    assert 0 <= parts.uncertainty <= 1 - 1 / classes


def test_forecasts_of_few_values_leave_nothing_within_bins() -> None:
    p = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.7, 0.7], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    parts = brier_decomposition(p, y, bins=10)
    assert parts.within_bins.item() == pytest.approx(0, abs=1e-12)
    assert parts.score.item() == pytest.approx(binary_brier_score(p, y).mean().item())
    assert parts.uncertainty.item() == pytest.approx(0.25)
    assert parts.reliability.item() == pytest.approx((4 * 0.15**2 + 2 * 0.3**2) / 6)
    assert parts.resolution.item() == pytest.approx((4 * 0.25**2 + 2 * 0.5**2) / 6)


def test_the_base_rate_as_a_forecast_resolves_nothing() -> None:
    p = torch.full((8, 2), 0.5)
    parts = brier_decomposition(p, torch.tensor([0, 1] * 4))
    assert parts.resolution.item() == 0
    assert parts.reliability.item() == 0
    assert parts.score.item() == parts.uncertainty.item() == 0.5
