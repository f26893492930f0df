"""Noise as modules: live in evaluation too, checked when they are made."""

import pytest
import torch

from stablelightning.errors import RecipeError
from stablelightning.nn import GaussianNoise, MaskingNoise, SaltAndPepperNoise


@pytest.mark.parametrize("noise", [GaussianNoise(), MaskingNoise(), SaltAndPepperNoise()])
def test_inputs_are_corrupted_in_evaluation_too(noise):
    torch.manual_seed(0)
    inputs = torch.rand(4, 1, 8, 8) + 0.1
    assert not torch.equal(noise.eval()(inputs), inputs)
    assert list(noise.state_dict()) == []


def test_squares_are_squares():
    torch.manual_seed(0)
    masked = MaskingNoise(0.5, block=8)(torch.ones(50, 1, 8, 8))
    whole = masked.flatten(1).mean(1)
    assert ((whole > 0) & (whole < 1)).any()  # the grid is shifted


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaussianNoise(0), "std must be > 0, got 0"),
        (lambda: GaussianNoise(True), "std must be > 0"),
        (lambda: MaskingNoise(1.0), r"share must be in \(0, 1\)"),
        (lambda: MaskingNoise(0.5, block=0), "block must be a whole number"),
        (lambda: SaltAndPepperNoise(0), r"share must be in \(0, 1\)"),
    ],
)
def test_a_bad_setting_is_refused(make, match):
    with pytest.raises(RecipeError, match=match):
        make()
