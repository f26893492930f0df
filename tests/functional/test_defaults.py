import math

import pytest
import torch
from torch import nn

from stablelightning.functional.defaults import (
    constant_evidence,
    normal_evidence,
    uniform_evidence,
)
from stablelightning.functional.initialize import glorot_, he_, truncated_normal_

SHAPES = [(1, 1), (5, 3), (33, 16), (7, 100), (300, 200)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fresh_numbers_pass_drawn_in_their_dtype_or_cast_to_it(shape, dtype):
    bound = 1 / math.sqrt(shape[1])
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = torch.empty(shape, dtype=dtype).uniform_(-bound, bound)
        cast = torch.empty(shape).uniform_(-bound, bound).to(dtype)
        assert uniform_evidence(drawn, bound).against is None
        assert uniform_evidence(cast, bound).against is None
        assert normal_evidence(torch.randn(shape).to(dtype)).against is None


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_enough_speaks_for_fresh_numbers(shape):
    bound = 1 / math.sqrt(shape[1])
    assert uniform_evidence(torch.empty(shape).uniform_(-bound, bound), bound).enough


def test_one_number_says_little():
    assert not uniform_evidence(torch.tensor([0.3]), 1.0).enough


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_the_smallest_step_of_an_optimizer_shows(step, shape):
    bound = 1 / math.sqrt(shape[1])
    for seed in range(5):
        torch.manual_seed(seed)
        weight = torch.empty(shape).uniform_(-bound, bound)
        moved = weight + step * bound * torch.randn(shape)
        evidence = uniform_evidence(moved, bound)
        assert evidence.against or not evidence.enough
        assert evidence.against or weight.numel() < 100


def test_a_part_that_was_moved_shows():
    weight = torch.empty(100, 64).uniform_(-0.125, 0.125)
    weight[:10] *= 0.999
    assert uniform_evidence(weight, 0.125).against == "it was moved since it was drawn"


HAND_SET = {
    "he": he_,
    "glorot": glorot_,
    "he by torch": nn.init.kaiming_uniform_,
    "truncated normal": lambda w: truncated_normal_(w, 0.02),
    "orthogonal": nn.init.orthogonal_,
    "zero": nn.init.zeros_,
    "constant": lambda w: nn.init.constant_(w, 0.05),
    "small uniform": lambda w: nn.init.uniform_(w, -0.01, 0.01),
    "half": lambda w: w.div_(2),
    "double": lambda w: w.mul_(2),
    "positive": lambda w: w.abs_(),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", HAND_SET)
def test_other_distributions_are_told_apart(name, dtype):
    weight = torch.empty(64, 48).uniform_(-(48**-0.5), 48**-0.5)
    evidence = uniform_evidence(HAND_SET[name](weight).to(dtype), 48**-0.5)
    assert evidence.against is not None


def test_normal_numbers_of_another_size_or_shape_are_told_apart():
    assert normal_evidence(0.9 * torch.randn(4000)).against
    assert normal_evidence(torch.empty(4000).uniform_(-1.7, 1.7)).against
    assert normal_evidence(torch.cat([torch.randn(99), torch.tensor([9.0])])).against
    assert normal_evidence(torch.zeros(50)).against
    assert normal_evidence(0.1 * torch.randn(500), 0.1).against is None


def test_constants_are_compared_to_the_bit():
    assert constant_evidence(torch.full((3,), 0.1, dtype=torch.bfloat16), 0.1).against is None
    assert constant_evidence(torch.tensor([1.0, 1.0 + 2**-23]), 1.0).against


def test_nothing_is_evidence_of_nothing():
    assert uniform_evidence(torch.empty(0), 1.0) == normal_evidence(torch.empty(0))
