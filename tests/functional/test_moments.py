"""Streamed moments against the moments of all samples at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stablelightning.functional.moments import Moments

samples = arrays(np.float64, (9, 3), elements=st.floats(-1e6, 1e6))


def streamed(values: torch.Tensor, sizes: list[int]) -> Moments:
    moments = Moments()
    for chunk in values.split(sizes):
        moments.update_(chunk)
    return moments


@given(samples, st.sampled_from([[9], [1] * 9, [4, 5], [1, 7, 1], [2, 3, 4]]))
def test_any_chunking_gives_the_moments_of_the_whole(values: np.ndarray, sizes: list[int]) -> None:
    moments = streamed(torch.from_numpy(values), sizes)
    assert moments.count == 9
    scale = np.abs(values).max() + 1
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12, atol=1e-12 * scale)
    for correction in (0, 1):
        np.testing.assert_allclose(
            moments.variance(correction=correction),
            values.var(0, ddof=correction),
            rtol=1e-9,
            atol=1e-12 * scale**2,
        )


def test_a_mean_far_from_zero_does_not_cancel_the_variance() -> None:
    values = torch.tensor([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]).unsqueeze(1)  # float32
    moments = streamed(values, [1, 1, 2])
    assert moments.variance().item() == pytest.approx(1.25)
    naive = values.square().mean() - values.mean().square()
    assert naive.item() != pytest.approx(1.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_single(dtype: torch.dtype) -> None:
    moments = streamed(torch.ones(4096, 1, dtype=dtype), [1024] * 4)
    assert moments.mean is not None
    assert moments.mean.dtype == torch.float32
    assert moments.mean.item() == 1.0
    assert moments.variance().item() == 0.0


def test_double_precision_is_kept() -> None:
    moments = streamed(torch.ones(2, 1, dtype=torch.float64), [1, 1])
    assert moments.mean is not None
    assert moments.mean.dtype == torch.float64


def test_the_samples_are_left_as_they_were() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    before = values.clone()
    streamed(values, [2, 1])
    assert torch.equal(values, before)


def test_one_sample_has_no_spread() -> None:
    moments = streamed(torch.tensor([[2.0, 3.0]]), [1])
    assert moments.variance().tolist() == [0.0, 0.0]
    assert moments.variance(correction=1).tolist() == [0.0, 0.0]


def test_variance_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Moments().variance()
