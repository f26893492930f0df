"""Dense and convolutional blocks: order, biases that the norm voids, shapes and refusals."""

import pytest
import torch
from torch import nn

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn import ConvBlock, DenseBlock
from stablelightning.nn.blocks import same_convolution

BLOCKS = {
    "dense": (lambda place: DenseBlock(4, 6, batch_norm=place), torch.randn(32, 4)),
    "conv": (lambda place: ConvBlock(4, 6, batch_norm=place), torch.randn(8, 4, 5, 5)),
}


def order(block: nn.Module, inputs: torch.Tensor) -> list[str]:
    """The classes of the modules with no module inside, in the order in which they run."""
    ran: list[str] = []
    for module in block.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, *_: ran.append(type(m).__name__))
    block(inputs)
    return [name for name in ran if name != "Identity"]


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_norm_stands_where_it_was_asked_for(kind: str) -> None:
    make, inputs = BLOCKS[kind]
    layer = {"dense": "Linear", "conv": "Conv2d"}[kind]
    norm = {"dense": "BatchNorm1d", "conv": "BatchNorm2d"}[kind]
    assert order(make("before"), inputs) == [layer, norm, "ReLU"]
    assert order(make("after"), inputs) == [layer, "ReLU", norm]
    assert order(make(None), inputs) == [layer, "ReLU"]


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_bias_is_dropped_exactly_where_the_norm_makes_it_void(kind: str) -> None:
    make, inputs = BLOCKS[kind]
    layers = {place: next(make(place).children()) for place in ("before", "after", None)}
    assert layers["before"].bias is None
    assert layers["after"].bias is not None
    assert layers[None].bias is not None
    # Void: any bias in front of the norm leaves the output where it is; behind an activation not.
    block = make("before").train()
    plain = block(inputs)
    next(block.children()).bias = nn.Parameter(torch.randn(6))
    torch.testing.assert_close(block(inputs), plain, rtol=1e-4, atol=1e-4)
    block = make("after").train()
    plain = block(inputs)
    with torch.no_grad():
        next(block.children()).bias.add_(1.0)
    assert not torch.allclose(block(inputs), plain, atol=1e-2)


@pytest.mark.parametrize("kind", BLOCKS)
def test_norm_after_the_activation_gives_standardised_outputs(kind: str) -> None:
    make, inputs = BLOCKS[kind]
    output = make("after").train()(inputs).transpose(0, 1).flatten(1)
    torch.testing.assert_close(output.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.std(1, correction=0), torch.ones(6), atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_conv_block_rounds_the_size_up(size: int, kernel_size: int, stride: int) -> None:
    block = ConvBlock(3, 5, kernel_size=kernel_size, stride=stride)
    side = -(-size // stride)
    assert block(torch.randn(2, 3, size, size)).shape == (2, 5, side, side)


def test_dropout_is_the_last_module_and_live_in_training_only() -> None:
    block, rows = DenseBlock(4, 64, batch_norm="after", dropout=0.5), torch.randn(32, 4)
    assert order(block, rows)[-1] == "Dropout"
    assert (block.train()(rows) == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(block.eval()(rows), block(rows))
    assert not any(isinstance(m, nn.Dropout) for m in DenseBlock(4, 4).modules())


def test_leading_axes_pass_without_batch_norm_and_are_refused_with_it() -> None:
    tokens = torch.randn(2, 4, 4)
    assert DenseBlock(4, 6, batch_norm=None)(tokens).shape == (2, 4, 6)
    with pytest.raises(DataError, match="got 3 axes"):
        DenseBlock(4, 4)(tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseBlock(0, 4), "in_features must be >= 1, got 0"),
        (lambda: DenseBlock(4, 4, batch_norm="around"), "batch_norm must be one of 'before'"),
        (lambda: DenseBlock(4, 4, dropout=1.0), "dropout must be in"),
        (lambda: ConvBlock(4, -1), "out_channels must be >= 1, got -1"),
        (lambda: ConvBlock(4, 4, kernel_size=2), "kernel_size must be odd"),
        (lambda: ConvBlock(4, 4, stride=0), "stride must be >= 1, got 0"),
        (lambda: same_convolution(4, 4, -1), "kernel_size must be odd"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
