"""``sl.initialize`` on blocks, without hints: what starts as the identity stays it, and learns."""

import pytest
import torch
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.nn import DenseBlock, HighwayBlock, VariationalGRU, VariationalLSTM
from tests.contracts.test_blocks import BLOCKS, CONV, DENSE, RECURRENT, inputs_of

DEPTH = 50

#: Blocks that keep signal and gradient at any depth.
DEEP = [
    "DenseBlock plain",
    "DenseResidualBlock",
    "DensePreActivationBlock",
    "ScaledResidual",
    "HighwayBlock",
    "BalancedFusion",
    "ConvResidualBlock",
    "ConvPreActivationBlock",
    "ConvBottleneckBlock",
]
#: Blocks whose batch norm holds the signal, and lets the gradient grow from block to block.
NORMALISED = ["DenseBlock before", "DenseBlock after", "ConvBlock before", "ConvBlock after"]


def stack(name: str, depth: int) -> tuple[nn.Sequential, Tensor]:
    blocks, inputs = nn.Sequential(*(BLOCKS[name]() for _ in range(depth))), inputs_of(name, 64)
    report = sl.initialize(blocks, inputs)
    assert report.notes == []
    return blocks.train(), inputs


def profile(blocks: nn.Sequential, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation over the rows, and rms of the gradient, from the input to the output."""
    signals = [inputs.clone().requires_grad_()]
    for block in blocks:
        signals.append(block(signals[-1]))
    gradients = torch.autograd.grad(signals[-1], signals, torch.randn_like(signals[-1]))
    spread = torch.stack([s.detach().std(0).square().mean().sqrt() for s in signals])
    return spread, torch.stack([g.square().mean().sqrt() for g in gradients])


def test_every_stackable_block_is_in_one_of_the_lists() -> None:
    assert {*DEEP, *NORMALISED} == {*DENSE, *CONV}


@pytest.mark.parametrize("name", DEEP)
def test_signal_and_gradient_survive_fifty_blocks(name: str) -> None:
    spread, gradient = profile(*stack(name, DEPTH))
    for values in (spread, gradient):
        ratios = values / values[-1]
        assert ratios.min() > 0.1
        assert ratios.max() < 10


@pytest.mark.parametrize("name", NORMALISED)
def test_batch_norm_holds_the_signal_and_lets_the_gradient_grow(name: str) -> None:
    """The page on blocks says by how much, and to take residual blocks instead."""
    spread, gradient = profile(*stack(name, DEPTH))
    assert spread.min() > 0.3
    assert spread.max() < 1.1
    growth = (gradient[0] / gradient[-1]) ** (1 / DEPTH)
    assert 1.1 < growth < 1.35
    _, gradient = profile(*stack(name, 8))
    assert gradient[0] / gradient[-1] < 10


@pytest.mark.parametrize("name", ["DensePreActivationBlock", "ScaledResidual"])
def test_a_stack_that_is_the_identity_stays_the_identity(name: str) -> None:
    blocks, inputs = stack(name, DEPTH)
    assert torch.equal(blocks(inputs), inputs)


@pytest.mark.parametrize("name", ["ConvPreActivationBlock"])
def test_a_convolutional_stack_that_is_the_identity_stays_the_identity(name: str) -> None:
    blocks, inputs = stack(name, 10)
    assert torch.equal(blocks(inputs), inputs)


@pytest.mark.parametrize("name", ["DenseResidualBlock", "ConvResidualBlock", "ConvBottleneckBlock"])
def test_a_stack_that_starts_as_its_activation_does_so_still(name: str) -> None:
    blocks, inputs = stack(name, 10)
    assert torch.equal(blocks(inputs), inputs.relu())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_still_learns(name: str, overwrite: bool) -> None:
    """No initialization makes two zeros in a row, nor a dead layer."""
    block, inputs = BLOCKS[name](), inputs_of(name)
    model = nn.Sequential(nn.Linear(16, 16) if name not in CONV else nn.Conv2d(16, 16, 1), block)
    sl.initialize(model, inputs, overwrite=overwrite)
    start = {n: p.detach().clone() for n, p in block.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    target = torch.randn_like(model(inputs))
    for _ in range(3):
        optimizer.zero_grad()
        (model.train()(inputs) - target).square().mean().backward()
        optimizer.step()
    assert [n for n, p in block.named_parameters() if torch.equal(p, start[n])] == []


@pytest.mark.parametrize("name", BLOCKS)
def test_what_trained_is_left_alone(name: str) -> None:
    model = nn.Sequential(BLOCKS[name]())
    inputs = inputs_of(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        (model.train()(inputs) - 3).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # out of the support of every default
    before = {n: p.clone() for n, p in model.named_parameters()}
    report = sl.initialize(model, inputs)
    assert report.changed == ()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_highway_keeps_its_carry_bias() -> None:
    model = nn.Sequential(HighwayBlock(16, carry_bias=3.0), nn.Linear(16, 2))
    report = sl.initialize(model, torch.randn(8, 16))
    assert (model[0].gate.bias == -3.0).all()
    assert (model[0].linear.bias == 0).all()
    assert "Glorot" in report["0.gate"].distribution
    assert "He" in report["0.linear"].distribution


def test_a_void_bias_is_not_missed() -> None:
    model = nn.Sequential(DenseBlock(16, 16), DenseBlock(16, 16, batch_norm="after"))
    report = sl.initialize(model, torch.randn(8, 16))
    assert report["0.linear"].parameters == ("0.linear.weight",)
    assert report["1.linear"].parameters == ("1.linear.weight", "1.linear.bias")


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("kind", [VariationalLSTM, VariationalGRU])
def test_recurrent_layers_follow_the_rules_of_recurrent_layers(kind, layer_norm: bool) -> None:
    layer = kind(16, 24, layer_norm=layer_norm, recurrent_dropout=0.2)
    sl.initialize(nn.Sequential(layer), torch.randn(5, 8, 16))
    for gate in layer.weight_hh_l0.chunk(4 if kind is VariationalLSTM else 3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(24), atol=1e-5, rtol=0)
    biases = (layer.bias_ih_l0 + layer.bias_hh_l0).chunk(4 if kind is VariationalLSTM else 3)
    expected = [0.0, 1.0, 0.0, 0.0] if kind is VariationalLSTM else [0.0, 0.0, 0.0]
    assert [set(bias.tolist()) for bias in biases] == [{value} for value in expected]


@pytest.mark.parametrize("name", RECURRENT)
def test_a_state_keeps_its_size_over_fifty_steps(name: str) -> None:
    blocks = nn.Sequential(BLOCKS[name]())
    sequence = torch.randn(DEPTH, 64, 16)
    sl.initialize(blocks, sequence)
    spread = blocks.eval()(sequence).std(1).square().mean(1).sqrt()
    assert spread[1:].min() > 0.1
    assert spread.max() < 1
    assert spread[-1] / spread[1] < 3
