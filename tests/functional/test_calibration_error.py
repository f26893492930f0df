"""Calibration errors: closed forms, and what a permutation or a tie must not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from stablelightning.errors import RecipeError
from stablelightning.functional.calibration_error import (
    adaptive_calibration_error,
    classwise_calibration_error,
)


def two_classes(confidence: torch.Tensor) -> torch.Tensor:
    return torch.stack([confidence, 1 - confidence], 1)


def test_a_calibrated_classifier_has_no_error() -> None:
    confidence = torch.full((10,), 0.8)
    target = torch.tensor([0] * 8 + [1] * 2)
    p = two_classes(confidence)
    assert adaptive_calibration_error(p, target, bins=5).item() == pytest.approx(0, abs=1e-6)
    assert classwise_calibration_error(p, target).item() == pytest.approx(0, abs=1e-6)


def test_one_bin_is_the_mean_gap_of_both() -> None:
    p = torch.randn(50, 5, dtype=torch.float64).softmax(1)
    target = torch.randint(5, (50,))
    gap = (p.max(1).values - (p.argmax(1) == target).double()).mean().abs().item()
    assert adaptive_calibration_error(p, target, bins=1).item() == pytest.approx(gap)
    usual = multiclass_calibration_error(p, target, num_classes=5, n_bins=1).item()
    assert usual == pytest.approx(gap, abs=1e-6)


def test_classwise_is_the_mean_of_torchmetrics_binary_error() -> None:
    p = torch.randn(300, 4).softmax(1)
    target = torch.randint(4, (300,))
    each = [binary_calibration_error(p[:, k], (target == k).long(), n_bins=15) for k in range(4)]
    expected = torch.stack(each).mean().item()
    assert classwise_calibration_error(p, target).item() == pytest.approx(expected, abs=1e-6)
    label = classwise_calibration_error(p[:, 0], (target == 0).long()).item()
    assert label == pytest.approx(each[0].item(), abs=1e-6)


@given(st.integers(1, 12), st.integers(1, 40), st.randoms())
def test_ties_make_the_order_no_matter(bins: int, n: int, shuffle) -> None:  # type: ignore[no-untyped-def]
    confidence = torch.tensor([0.5 + shuffle.randint(0, 4) / 10 for _ in range(n)])
    target = torch.tensor([shuffle.randint(0, 1) for _ in range(n)])
    order = list(range(n))
    shuffle.shuffle(order)
    p = two_classes(confidence)
    first = adaptive_calibration_error(p, target, bins=bins)
    again = adaptive_calibration_error(p[order], target[order], bins=bins)
    assert first.item() == pytest.approx(again.item(), abs=1e-6)
    assert 0 <= first.item() <= 1


def test_more_bins_than_rows() -> None:
    p = two_classes(torch.tensor([0.9, 0.6]))
    found = adaptive_calibration_error(p, torch.tensor([0, 1]), bins=10).item()
    assert found == pytest.approx((0.1 + 0.6) / 2)


def test_bins_must_be_a_positive_whole_number() -> None:
    for function in (adaptive_calibration_error, classwise_calibration_error):
        with pytest.raises(RecipeError, match="bins must be a whole number >= 1"):
            function(two_classes(torch.ones(2)), torch.zeros(2).long(), bins=0)
