"""Rows, weights and distances that may be at fault."""

import math

import pytest
import torch
from torch import nn

from stablelightning.model.suspects import (
    bad_rows,
    distance_from,
    floating_leaves,
    largest_gain,
    largest_gradient,
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_found_in_inputs_and_targets(value):
    images, target = torch.ones(6, 1, 4, 4), torch.zeros(6)
    images[1, 0, 3, 3] = value
    target[4] = value
    found = bad_rows({"pixels": images, "target": target})
    assert (found.rows, found.of, found.infinite) == ([1, 4], 6, True)


def test_a_row_far_from_the_others_is_found():
    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    assert bad_rows(rows) is None
    rows[5] *= 1e4
    found = bad_rows(rows)
    assert (found.rows, found.infinite) == ([5], False)
    assert found.ratio == pytest.approx(1e4, rel=0.9)


def test_a_batch_that_is_far_off_as_a_whole_needs_what_is_usual():
    rows = 1e4 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    assert bad_rows(rows) is None
    assert bad_rows(rows, usual=[3.0]).rows == list(range(8))
    assert bad_rows(rows, usual=[3.0, 1.0]) is None  # of a batch of another structure


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor([1, 2, 3]),
        [],
        {"text": "words"},
        torch.tensor(math.nan),
        torch.zeros(0, 3),
        torch.zeros(4, 3),
        (torch.arange(4), "four"),
    ],
)
def test_what_holds_no_rows_of_floats_is_not_bad(batch):
    assert bad_rows(batch) is None


def test_leaves_with_other_rows_are_left_out():
    leaves = floating_leaves((torch.ones(4, 2), torch.ones(3), torch.ones(4), torch.ones(())))
    assert [tuple(leaf.shape) for leaf in leaves] == [(4, 2), (4, 1)]


def test_gain_of_fresh_layers_is_about_one_and_embeddings_do_not_count():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 64), nn.Linear(64, 64), nn.Conv1d(64, 8, 3))
    net[0].weight.data.mul_(1e6)
    name, gain = largest_gain(net)
    assert name in ("1", "2")
    assert 0.2 < gain < 2
    assert largest_gain(nn.ReLU()) == ("", 0.0)


def test_distance_counts_what_both_have():
    net = nn.Linear(2, 1)
    earlier = {name: value.detach() * 0.5 for name, value in net.named_parameters()}
    assert distance_from(net, earlier) == pytest.approx(1.0)
    assert math.isnan(distance_from(net, {}))


def test_the_largest_gradient_is_named_with_its_share():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    gradients = [torch.tensor([[1.0]]), torch.tensor([[3.0]])]
    assert largest_gradient(net, gradients) == ("1", pytest.approx(0.9))
    assert largest_gradient(net, [None, None])[0] == ""
    assert largest_gradient(net, [torch.tensor([[math.nan]]), None])[0] == ""
