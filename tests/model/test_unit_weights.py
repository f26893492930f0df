"""Whose weights are whose: a unit's weights are those that change its output."""

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm as hooked_weight_norm
from torch.nn.utils.parametrizations import spectral_norm

from stablelightning.functional.regularize import unit_norms
from stablelightning.model.unit_weights import unit_weights


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(3, 4), (3,)),
        (nn.Conv1d(4, 6, 3, groups=2), (4, 5)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), (4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
        (nn.ConvTranspose1d(4, 4, 3, groups=4), (4, 5)),
    ],
    ids=str,
)
def test_the_slice_of_a_unit_is_what_makes_its_output(layer, inputs):
    (unit,), left = unit_weights(layer)
    assert left == []
    weight, axes = unit.split()
    norms = unit_norms(weight, unit_axes=axes).flatten()
    x = torch.randn(1, *inputs)
    channels = layer(x).shape[1]
    assert len(norms) == channels
    layer.bias.data.zero_()
    # Zero the weights of one unit through the view: that output channel, and no other, is zero.
    for chosen in range(channels):
        layer.reset_parameters()
        layer.bias.data.zero_()
        keep = torch.ones(channels)
        keep[chosen] = 0
        shape = [n if i in axes else 1 for i, n in enumerate(weight.shape)]
        weight.mul_(keep.view(shape))
        silent = [c for c in range(channels) if not layer(x)[0, c].any()]
        assert silent == [chosen]


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.LSTM(3, 2), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (nn.Embedding(4, 3), []),
        (nn.BatchNorm1d(3), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_which_weights_have_units(layer, names):
    assert [unit.name for unit in unit_weights(layer)[0]] == names


def test_a_head_that_is_tied_to_an_embedding_counts_as_a_head():
    head, embedding = nn.Linear(3, 5), nn.Embedding(5, 3)
    embedding.weight = head.weight
    assert [u.name for u in unit_weights(nn.Sequential(embedding, head))[0]] == ["0.weight"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_made_from_others_are_left_out_by_name():
    net = nn.Sequential(spectral_norm(nn.Linear(3, 3)), hooked_weight_norm(nn.Linear(3, 3)))
    found, left = unit_weights(net)
    assert found == []
    assert left == ["0.parametrizations.weight.original", "1.weight_v"]
