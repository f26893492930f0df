"""Measures of uncertainty: closed forms, scipy as an oracle, and their inequalities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from stablelightning.errors import DataError
from stablelightning.functional.uncertainty import (
    as_label_probabilities,
    as_probabilities,
    binary_entropy,
    binary_mutual_information,
    entropy,
    gaussian_mixture_log_likelihood,
    is_label_probabilities,
    is_probabilities,
    law_of_total_variance,
    mutual_information,
    variation_ratio,
)

# Logits wide enough for probabilities to underflow to exactly 0.
wide_logits = arrays(np.float64, (6, 4, 5), elements=st.floats(-900, 900))
labels = arrays(np.float64, (6, 4), elements=st.floats(0, 1))
numbers = arrays(np.float64, (6, 4), elements=st.floats(-1e3, 1e3))
ROUNDING = 1e-12


@given(wide_logits)
def test_entropy_agrees_with_scipy_and_stays_in_its_range(logits: np.ndarray) -> None:
    probabilities = torch.from_numpy(logits).softmax(-1)
    ours = entropy(probabilities, dim=-1)
    np.testing.assert_allclose(ours, stats.entropy(probabilities.numpy(), axis=-1), atol=1e-12)
    assert (ours >= -ROUNDING).all()
    assert (ours <= math.log(5) + ROUNDING).all()


def test_entropy_of_the_uniform_and_of_certainty() -> None:
    rows = torch.stack([torch.full((8,), 1 / 8), torch.eye(8)[3]])
    torch.testing.assert_close(entropy(rows), torch.tensor([math.log(8), 0.0]))


def test_entropy_is_taken_over_the_named_dimension() -> None:
    dense = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert entropy(dense).shape == (2, 4, 4)
    torch.testing.assert_close(entropy(dense.movedim(1, -1), dim=-1), entropy(dense))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    # A thousand classes of 1/1024 each: the terms are exact, their sum in half precision is not.
    uniform = torch.full((1, 1024), 1 / 1024, dtype=dtype)
    result = entropy(uniform)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(math.log(1024), rel=1e-5)
    assert entropy(uniform.double()).dtype == torch.float64


@given(labels)
def test_binary_entropy_is_the_entropy_of_two_classes(p: np.ndarray) -> None:
    yes = torch.from_numpy(p)
    both = torch.stack([yes, 1 - yes], dim=-1)
    torch.testing.assert_close(binary_entropy(yes), entropy(both, dim=-1), rtol=1e-9, atol=1e-12)


def test_binary_entropy_of_a_tiny_probability_keeps_both_terms() -> None:
    p = 1e-20
    ours = binary_entropy(torch.tensor(p, dtype=torch.float64)).item()
    assert ours == pytest.approx(-p * math.log(p) + p, rel=1e-12)


@given(wide_logits)
def test_mutual_information_is_between_zero_and_the_total(logits: np.ndarray) -> None:
    samples = torch.from_numpy(logits).softmax(-1)
    expected = entropy(samples, dim=-1).mean(0)
    total = entropy(samples.mean(0), dim=-1)
    information = mutual_information(samples.mean(0), expected, dim=-1)
    assert (information >= 0).all()
    assert (information <= math.log(5) + ROUNDING).all()
    torch.testing.assert_close(expected + information, total, rtol=1e-9, atol=1e-9)


def test_samples_that_agree_inform_about_nothing() -> None:
    sample = torch.tensor([[0.2, 0.3, 0.5]])
    assert mutual_information(sample, entropy(sample)).item() == 0


def test_samples_that_contradict_each_other_inform_about_everything() -> None:
    samples = torch.eye(4).unsqueeze(1)  # four samples of one row, each sure of another class
    information = mutual_information(samples.mean(0), entropy(samples, dim=-1).mean(0))
    assert information.item() == pytest.approx(math.log(4))


@given(labels)
def test_binary_mutual_information_splits_the_total(p: np.ndarray) -> None:
    samples = torch.from_numpy(p)
    expected = binary_entropy(samples).mean(0)
    information = binary_mutual_information(samples.mean(0), expected)
    assert (information >= 0).all()
    total = binary_entropy(samples.mean(0))
    torch.testing.assert_close(expected + information, total, rtol=1e-9, atol=1e-9)


def test_variation_ratio_counts_the_dissenters() -> None:
    votes = torch.tensor([[5, 0, 0], [3, 1, 1], [2, 2, 1]])
    torch.testing.assert_close(variation_ratio(votes), torch.tensor([0.0, 0.4, 0.6]))


@given(wide_logits)
def test_variation_ratio_from_streamed_votes_is_that_of_the_samples(logits: np.ndarray) -> None:
    chosen = torch.from_numpy(logits).argmax(-1)
    votes = torch.zeros(4, 5, dtype=torch.long)
    for sample in chosen:
        votes += torch.nn.functional.one_hot(sample, 5)
    mode = stats.mode(chosen.numpy(), axis=0)
    np.testing.assert_allclose(variation_ratio(votes), 1 - mode.count / 6, atol=1e-6)


@given(wide_logits)
def test_probabilities_logits_and_log_probabilities_mean_the_same(logits: np.ndarray) -> None:
    scores = torch.from_numpy(logits) / 30
    probabilities = scores.softmax(-1)
    for output in (probabilities, scores - 100, scores.log_softmax(-1)):
        torch.testing.assert_close(as_probabilities(output, dim=-1), probabilities)


def test_probabilities_are_returned_untouched() -> None:
    rows = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert torch.equal(as_probabilities(rows), rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_probabilities_are_recognised_in_every_precision(dtype: torch.dtype, classes: int) -> None:
    logits = torch.randn(32, classes, generator=torch.Generator().manual_seed(0))
    assert is_probabilities(logits.softmax(1).to(dtype))
    assert not is_probabilities(logits.to(dtype))
    assert not is_probabilities(logits.relu().to(dtype))


def test_one_row_that_is_no_distribution_makes_it_logits() -> None:
    assert not is_probabilities(torch.tensor([[0.5, 0.5], [0.5, 0.6]]))
    assert not is_probabilities(torch.tensor([[1.5, -0.5]]))
    assert not is_probabilities(torch.tensor([[math.nan, 1.0]]))


def test_labels_are_probabilities_only_if_all_lie_in_the_unit_interval() -> None:
    assert is_label_probabilities(torch.tensor([[0.0, 1.0], [0.9, 0.9]]))
    assert not is_label_probabilities(torch.tensor([[0.0, 1.0], [0.9, 1.1]]))
    assert not is_label_probabilities(torch.tensor([[math.nan]]))
    logits = torch.tensor([[-2.0, 3.0]])
    torch.testing.assert_close(as_label_probabilities(logits), logits.sigmoid())
    assert torch.equal(as_label_probabilities(logits.sigmoid()), logits.sigmoid())


@given(numbers, arrays(np.float64, (6, 4), elements=st.floats(0, 1e3)))
def test_total_variance_is_that_of_the_mixture(means: np.ndarray, variances: np.ndarray) -> None:
    split = law_of_total_variance(torch.from_numpy(means), torch.from_numpy(variances))
    assert torch.equal(split.total, split.aleatoric + split.epistemic)
    # The mixture's variance by its second moment, around a shift that avoids cancellation.
    centred = means - means.mean(0)
    expected = (variances + centred**2).mean(0)
    np.testing.assert_allclose(split.total, expected, rtol=1e-9, atol=1e-9)


def test_variance_of_means_survives_a_far_offset_in_half_precision() -> None:
    means = torch.tensor([[2000.0], [2002.0]], dtype=torch.float16)
    split = law_of_total_variance(means, torch.zeros(1, dtype=torch.float16))
    assert split.epistemic.tolist() == [1.0]
    assert split.aleatoric.tolist() == [0.0]


def test_equal_samples_have_no_variance_and_large_means_do_not_drown_it() -> None:
    same = torch.full((7, 3), 0.1)
    assert torch.equal(law_of_total_variance(same, same).epistemic, torch.zeros(3))
    drawn = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    far = (drawn + 1e4).requires_grad_()
    split = law_of_total_variance(far.T, torch.ones(1), dim=1)
    torch.testing.assert_close(
        split.epistemic.double(), far.detach().double().var(0, correction=0), rtol=1e-5, atol=0
    )
    split.total.sum().backward()
    assert far.grad is not None
    assert bool(far.grad.isfinite().all())


@given(numbers, arrays(np.float64, (6, 4), elements=st.floats(1e-2, 1e2)))
def test_mixture_likelihood_agrees_with_scipy(means: np.ndarray, variances: np.ndarray) -> None:
    target = means[0]
    ours = gaussian_mixture_log_likelihood(*map(torch.from_numpy, (means, variances, target)))
    each = stats.norm.logpdf(target, loc=means, scale=np.sqrt(variances))
    expected = np.logaddexp.reduce(each, axis=0) - math.log(6)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_mixture_likelihood_of_far_targets_does_not_underflow() -> None:
    far = gaussian_mixture_log_likelihood(
        torch.zeros(3, 1), torch.ones(3, 1), torch.tensor([1000.0])
    )
    assert far.item() == pytest.approx(-0.5 * 1e6 - 0.5 * math.log(2 * math.pi), rel=1e-6)


def test_mixture_likelihood_refuses_a_target_of_another_shape() -> None:
    with pytest.raises(DataError, match="same shape"):
        gaussian_mixture_log_likelihood(torch.zeros(3, 4, 1), torch.ones(3, 4, 1), torch.zeros(4))
