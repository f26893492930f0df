"""Noise: of the stated size, on the stated share, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.corrupt import add_gaussian_noise, mask_values, salt_and_pepper

SHARES = st.floats(0.0, 0.95)


def test_gaussian_noise_has_its_deviation_and_no_mean():
    torch.manual_seed(0)
    noise = add_gaussian_noise(torch.full((100, 100), 3.0), 0.5) - 3
    assert noise.std().item() == pytest.approx(0.5, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)


def test_no_noise_is_the_input():
    inputs = torch.randn(3, 4)
    assert torch.equal(add_gaussian_noise(inputs, 0), inputs)
    assert torch.equal(mask_values(inputs, 0), inputs)
    assert torch.equal(salt_and_pepper(inputs, 0), inputs)


@given(share=SHARES)
def test_masking_takes_the_share_and_leaves_the_rest_to_the_bit(share):
    torch.manual_seed(0)
    inputs = torch.rand(100, 100) + 1
    masked = mask_values(inputs, share)
    gone = masked == 0
    assert gone.float().mean().item() == pytest.approx(share, abs=0.02)
    assert torch.equal(masked[~gone], inputs[~gone])


@given(block=st.integers(1, 9), share=SHARES)
def test_squares_go_through_all_channels_and_keep_the_share(block, share):
    torch.manual_seed(0)
    images = torch.rand(200, 3, 13, 11) + 1
    masked = mask_values(images, share, block=block)
    gone = masked == 0
    assert masked.shape == images.shape
    assert torch.equal(gone.any(1), gone.all(1))
    assert torch.equal(masked[~gone], images[~gone])
    assert gone.float().mean().item() == pytest.approx(share, abs=0.1)


def test_a_square_of_two_is_never_cut_but_by_the_border():
    torch.manual_seed(0)
    gone = mask_values(torch.ones(500, 1, 6, 6), 0.3, block=2)[:, 0] == 0
    inner = gone[:, 1:-1, 1:-1]
    neighbours = gone[:, :-2, 1:-1] | gone[:, 2:, 1:-1]
    assert (neighbours | ~inner).all()


@given(share=SHARES)
def test_salt_and_pepper_are_the_ends_of_the_batch(share):
    torch.manual_seed(0)
    inputs = torch.rand(100, 100)
    noisy = salt_and_pepper(inputs, share)
    changed = noisy != inputs
    ends = (noisy == inputs.min()) | (noisy == inputs.max())
    assert ends[changed].all()
    assert changed.float().mean().item() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_kind_of_number_stays(dtype):
    inputs = torch.ones(2, 1, 4, 4, dtype=dtype)
    for corrupted in (
        add_gaussian_noise(inputs, 0.1),
        mask_values(inputs, 0.5, block=2),
        salt_and_pepper(inputs, 0.5),
    ):
        assert corrupted.dtype == dtype


def test_what_is_out_of_range_is_refused():
    with pytest.raises(RecipeError, match="std must be >= 0, got -1"):
        add_gaussian_noise(torch.ones(2), -1)
    with pytest.raises(RecipeError, match=r"share must be in \[0, 1\), got 1"):
        mask_values(torch.ones(2, 2), 1)
    with pytest.raises(RecipeError, match="share must be"):
        salt_and_pepper(torch.ones(2, 2), -0.1)
    with pytest.raises(RecipeError, match="block must be a whole number"):
        mask_values(torch.ones(2, 1, 2, 2), 0.5, block=0)
    with pytest.raises(DataError, match="squares are cut out of images"):
        mask_values(torch.ones(2, 2), 0.5, block=2)
