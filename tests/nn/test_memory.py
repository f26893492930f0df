"""Biases that keep the cell for as long as a sequence is."""

import math

import pytest
import torch
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.nn import LongMemoryLSTM, RecurrentNet


def test_each_unit_has_a_memory_of_its_own_up_to_the_longest():
    torch.manual_seed(0)
    layer = LongMemoryLSTM(2, 4000, longest=201)
    let, keep, new, out = layer.bias_ih_l0.detach().chunk(4)
    assert (keep >= 0).all()
    assert (keep <= math.log(200)).all()
    assert keep.exp().mean() == pytest.approx(100.5, rel=0.03)  # uniform in [1, 200]
    assert torch.equal(let, -keep)
    assert not new.any()
    assert not out.any()
    assert not layer.bias_hh_l0.any()


def test_what_was_read_first_reaches_the_end():
    def reach(layer: nn.Module) -> float:
        inputs = torch.randn(1, 200, 2, requires_grad=True)
        outputs, _ = layer(inputs)
        outputs[:, -1].abs().sum().backward()
        return float(inputs.grad[0, 0].norm() / inputs.grad[0, -1].norm())

    torch.manual_seed(0)
    assert reach(LongMemoryLSTM(2, 32, longest=200, batch_first=True)) > 1e-3
    assert reach(nn.LSTM(2, 32, batch_first=True)) < 1e-20


def test_all_layers_and_the_weights_of_torch():
    torch.manual_seed(0)
    layer = LongMemoryLSTM(2, 8, longest=50, num_layers=2, bidirectional=True)
    assert all(bias[8:16].min() >= 0 for n, bias in layer.named_parameters() if "bias_ih" in n)
    plain = nn.LSTM(2, 8, num_layers=2, bidirectional=True)
    plain.load_state_dict(layer.state_dict())
    sequence = torch.randn(7, 3, 2)
    assert torch.equal(plain(sequence)[0], layer(sequence)[0])


def test_works_in_a_recurrent_net_and_without_biases():
    assert RecurrentNet(2, 1, layer=LongMemoryLSTM)(torch.randn(3, 9, 2)).shape == (3, 1)
    assert LongMemoryLSTM(2, 4, bias=False)(torch.randn(5, 3, 2))[0].shape == (5, 3, 4)


@pytest.mark.parametrize("longest", [2, 0, -1])
def test_a_memory_of_no_length_is_refused(longest):
    with pytest.raises(RecipeError, match="longest must be a whole number >= 3, got"):
        LongMemoryLSTM(2, 4, longest=longest)
