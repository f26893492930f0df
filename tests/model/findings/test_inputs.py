"""The scale and the variety of a batch."""

import pytest
import torch
from torch import nn

from tests.model.findings.networks import find, findings, stack, table


@pytest.mark.parametrize(
    ("change", "severity"),
    [
        (lambda x: 255 * x, "error"),
        (lambda x: x + 100, "error"),
        (lambda x: 8 * x, "warning"),
        (lambda x: x + 4, "warning"),
        (lambda x: 1e-3 * x, "warning"),
    ],
    ids=["pixels", "far", "wide", "offset", "tiny"],
)
def test_inputs_off_scale(change, severity):
    inputs, target = table()
    found = find("input-not-standardised", stack(), (change(inputs), target))
    assert found.severity == severity


@pytest.mark.parametrize("change", [lambda x: x, lambda x: 2 * x, lambda x: x.clamp(-1, 1) / 2 + 1])
def test_inputs_near_enough_to_standard(change):
    inputs, target = table()
    assert find("input-not-standardised", stack(), (change(inputs), target)) is None


def test_one_wild_column():
    inputs, target = table()
    inputs[:, 3] *= 1e4
    assert find("input-not-standardised", stack(), (inputs, target)) is not None


def test_a_norm_in_front_softens_it():
    inputs, target = table()
    model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    assert find("input-not-standardised", model, (255 * inputs, target)).severity == "info"


def test_rows_that_are_all_the_same():
    inputs, target = table()
    found = findings(stack(), (inputs[:1].expand(64, -1), target))
    assert [f.code for f in found[:2]] == ["input-not-standardised", "collapsed-signal"]


def test_tokens_have_no_scale():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(16 * 6, 10))
    batch = torch.randint(50, (32, 6)), torch.randint(10, (32,))
    assert find("input-not-standardised", model, batch) is None
