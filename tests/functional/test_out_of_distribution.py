"""Detection against scikit-learn, ties included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.out_of_distribution import (
    energy_score,
    false_positive_rate,
    ood_aupr_in,
    ood_aupr_out,
    ood_auroc,
)


@st.composite
def two_kinds(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    out = draw(
        st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda o: 0 < sum(o) < len(o))
    )
    score = draw(st.lists(st.integers(-4, 4), min_size=len(out), max_size=len(out)))
    return torch.tensor(score, dtype=torch.float64), torch.tensor(out)


@given(two_kinds())
def test_against_scikit_learn(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    score, out = drawn
    s, o = score.numpy(), out.numpy()
    assert ood_auroc(score, out).item() == pytest.approx(roc_auc_score(o, s))
    assert ood_aupr_out(score, out).item() == pytest.approx(average_precision_score(o, s))
    assert ood_aupr_in(score, out).item() == pytest.approx(average_precision_score(~o, -s))
    rates, recalls, _ = roc_curve(~o, -s, drop_intermediate=False)
    expected = min(r for r, recall in zip(rates, recalls, strict=True) if recall >= 0.95 - 1e-12)
    assert false_positive_rate(score, out).item() == pytest.approx(expected)


@given(two_kinds())
def test_any_monotone_scale_gives_the_same(drawn: tuple[torch.Tensor, torch.Tensor]) -> None:
    score, out = drawn
    for statistic in (ood_auroc, ood_aupr_in, ood_aupr_out, false_positive_rate):
        assert torch.equal(statistic(score, out), statistic((3 * score).exp(), out))


def test_scores_far_outside_of_zero_to_one_stay_distinct() -> None:
    assert ood_auroc(torch.tensor([100.0, 101.0]), torch.tensor([0, 1])).item() == 1


def test_recall_that_does_not_come_out_even_in_binary() -> None:
    score = torch.arange(21.0)
    out = torch.zeros(21).long()
    out[-2] = 1  # 19 known ones below it, one above
    assert false_positive_rate(score, out, recall=0.95).item() == 0
    assert false_positive_rate(score, out, recall=0.96).item() == 1


def test_energy() -> None:
    logits = torch.randn(5, 7, 2)
    expected = -2 * (logits / 2).exp().sum(1).log()
    assert torch.allclose(energy_score(logits, temperature=2), expected)
    assert energy_score(torch.full((1, 3), 6e4, dtype=torch.float16)).isfinite().all()
    with pytest.raises(RecipeError, match="temperature must be > 0"):
        energy_score(logits, temperature=0)


def test_bad_input() -> None:
    with pytest.raises(DataError, match="got 2 in and 0 out of distribution"):
        ood_auroc(torch.ones(2), torch.zeros(2))
    with pytest.raises(DataError, match="score must not be NaN"):
        ood_auroc(torch.tensor([torch.nan, 1.0]), torch.tensor([0, 1]))
    with pytest.raises(RecipeError, match=r"recall must be in \(0, 1\]"):
        false_positive_rate(torch.ones(2), torch.tensor([0, 1]), recall=1.5)
