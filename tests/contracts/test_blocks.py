"""What every block of ``stablelightning.nn`` keeps to: state, precision, compiling, deep stacks."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stablelightning.nn import (
    BalancedFusion,
    ConvBlock,
    ConvBottleneckBlock,
    ConvPreActivationBlock,
    ConvResidualBlock,
    DenseBlock,
    DensePreActivationBlock,
    DenseResidualBlock,
    HighwayBlock,
    ScaledResidual,
    VariationalGRU,
    VariationalLSTM,
)

WIDTH = 16


class Reads(nn.Module):
    """A recurrent layer as a block: sequences in, sequences out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)[0]


class TwoTowers(nn.Module):
    """A fusion as a block: one input, two towers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, WIDTH - 6)
        self.fusion = BalancedFusion(2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fusion(10 * self.first(inputs), self.second(inputs))


def branch() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


DENSE: dict[str, Callable[[], nn.Module]] = {
    "DenseBlock before": lambda: DenseBlock(WIDTH, WIDTH),
    "DenseBlock after": lambda: DenseBlock(WIDTH, WIDTH, batch_norm="after"),
    "DenseBlock plain": lambda: DenseBlock(WIDTH, WIDTH, batch_norm=None),
    "DenseResidualBlock": lambda: DenseResidualBlock(WIDTH),
    "DensePreActivationBlock": lambda: DensePreActivationBlock(WIDTH),
    "ScaledResidual": lambda: ScaledResidual(branch()),
    "HighwayBlock": lambda: HighwayBlock(WIDTH),
    "BalancedFusion": TwoTowers,
}
CONV: dict[str, Callable[[], nn.Module]] = {
    "ConvBlock before": lambda: ConvBlock(WIDTH, WIDTH),
    "ConvBlock after": lambda: ConvBlock(WIDTH, WIDTH, batch_norm="after"),
    "ConvResidualBlock": lambda: ConvResidualBlock(WIDTH),
    "ConvPreActivationBlock": lambda: ConvPreActivationBlock(WIDTH),
    "ConvBottleneckBlock": lambda: ConvBottleneckBlock(WIDTH),
}
RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "VariationalLSTM": lambda: Reads(VariationalLSTM(WIDTH, WIDTH)),
    "VariationalLSTM norm": lambda: Reads(VariationalLSTM(WIDTH, WIDTH, layer_norm=True)),
    "VariationalGRU": lambda: Reads(VariationalGRU(WIDTH, WIDTH)),
    "VariationalGRU norm": lambda: Reads(VariationalGRU(WIDTH, WIDTH, layer_norm=True)),
}
BLOCKS = {**DENSE, **CONV, **RECURRENT}
every_block = pytest.mark.parametrize("name", BLOCKS)

#: Dynamo steps around recurrent layers, and the fusion reads whether its scales are measured.
BREAKS = {*RECURRENT, "BalancedFusion"}


def inputs_of(name: str, rows: int = 32) -> Tensor:
    if name in DENSE:
        return torch.randn(rows, WIDTH)
    return torch.randn(rows, WIDTH, 5, 5) if name in CONV else torch.randn(5, rows, WIDTH)


def moved(name: str) -> nn.Module:
    """A block after two steps, so that nothing in it is what a constructor makes."""
    block = BLOCKS[name]().train()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        block(inputs_of(name)).square().mean().backward()
        optimizer.step()
    return block


@every_block
def test_state_makes_the_round_trip(name: str) -> None:
    block, inputs = moved(name).eval(), inputs_of(name)
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    fresh = BLOCKS[name]().eval()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expected = block(inputs)
    assert torch.equal(fresh(inputs), expected)
    assert torch.equal(copy.deepcopy(block)(inputs), expected)
    inner = block.layer if name in RECURRENT else block
    assert pickle.loads(pickle.dumps(inner)).state_dict().keys() == inner.state_dict().keys()


@every_block
def test_an_exported_program_gives_the_same(name: str) -> None:
    block, inputs = moved(name).eval(), inputs_of(name)
    exported = torch.export.export(block, (inputs,))
    torch.testing.assert_close(exported.module()(inputs), block(inputs))


@pytest.mark.parametrize("name", [n for n in (*DENSE, *CONV) if n != "BalancedFusion"])
def test_a_scripted_block_keeps_its_state(name: str) -> None:
    block, inputs = moved(name).eval(), inputs_of(name)
    scripted = torch.jit.script(BLOCKS[name]().eval())
    scripted.load_state_dict(block.state_dict())
    torch.testing.assert_close(scripted(inputs), block(inputs))
    fresh = BLOCKS[name]().eval()
    fresh.load_state_dict(scripted.state_dict())
    assert torch.equal(fresh(inputs), block(inputs))


@every_block
def test_half_precision_follows_full_precision(name: str) -> None:
    block, inputs = moved(name).eval(), inputs_of(name)
    expected = block(inputs)
    output = block.bfloat16()(inputs.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.1)
    output.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


@every_block
def test_mixed_precision_trains(name: str) -> None:
    block, inputs = moved(name).train(), inputs_of(name)
    expected = copy.deepcopy(block)(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(inputs)
    torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.1)
    block.zero_grad()
    output.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in block.parameters() if p.grad is not None)


@every_block
def test_compiled_and_eager_agree(name: str) -> None:
    torch.compiler.reset()
    block, inputs = moved(name).train(), inputs_of(name)
    compiled = torch.compile(
        copy.deepcopy(block), backend="aot_eager", fullgraph=name not in BREAKS
    )
    results = []
    for one in (block, compiled):
        one.zero_grad()
        output = one(inputs)
        output.square().mean().backward()
        results.append((output.detach(), [p.grad for p in one.parameters()]))
    torch.testing.assert_close(*results)


@every_block
def test_rows_do_not_meet_in_eval(name: str) -> None:
    block, inputs = moved(name).eval(), inputs_of(name)
    axis = 1 if name in RECURRENT else 0
    together = block(inputs)
    alone = block(inputs.narrow(axis, 3, 1))
    torch.testing.assert_close(alone, together.narrow(axis, 3, 1), atol=1e-5, rtol=1e-4)
