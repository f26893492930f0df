"""Which parameters are decayed."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stablelightning.model.groups import decayed_parameters


def names(model: nn.Module) -> list[str]:
    return list(decayed_parameters(model))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 1), ["weight"]),
        (nn.Linear(1, 1), ["weight"]),
        (nn.Conv2d(1, 1, 1), ["weight"]),
        (nn.ConvTranspose1d(2, 3, 2), ["weight"]),
        (nn.Bilinear(2, 2, 1), ["weight"]),
        (nn.Embedding(3, 1), ["weight"]),
        (nn.LSTM(2, 1), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.MultiheadAttention(2, 1), ["in_proj_weight", "out_proj.weight"]),
        (nn.BatchNorm2d(4), []),
        (nn.LayerNorm((4, 4)), []),
        (nn.GroupNorm(2, 4), []),
        (nn.RMSNorm((4, 4)), []),
        (nn.PReLU(4), []),
        (weight_norm(nn.Linear(3, 4)), ["parametrizations.weight.original1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_weights_are_decayed_and_scales_and_shifts_are_not(layer, expected):
    assert names(layer) == expected


class Owner(nn.Module):
    """Parameters of its own, as vision transformers and ConvNeXt have them."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 4))
        self.layer_scale = nn.Parameter(torch.zeros(3, 1, 1))
        self.position_bias = nn.Parameter(torch.zeros(3, 4))
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.lazy = nn.LazyLinear(2)

    def no_weight_decay(self) -> set[str]:
        return {"positions"}


def test_a_module_says_what_of_its_own_is_spared():
    assert names(Owner()) == ["matrix"]
    assert names(nn.Sequential(Owner())) == ["0.matrix"]


def test_a_tied_weight_is_there_once_and_frozen_ones_too():
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embedding.weight
    embedding.weight.requires_grad_(False)
    assert names(nn.Sequential(embedding, head)) == ["0.weight"]


def test_a_weight_that_a_norm_shares_is_spared():
    norm, owner = nn.LayerNorm((3, 4)), Owner()
    owner.matrix = norm.weight
    assert names(nn.ModuleList([owner, norm])) == []
