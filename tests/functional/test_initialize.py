import math

import pytest
import torch
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.functional.gains import forward_gain
from stablelightning.functional.initialize import (
    Fans,
    Layout,
    fixup_,
    fixup_factor,
    glorot_,
    he_,
    lecun_,
    normal_,
    scale_to_size_,
    scaled_,
    truncated_normal_,
    uniform_,
)

DRAWS = (normal_, uniform_, truncated_normal_)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_distribution_has_the_std_that_is_asked_for(draw, dtype):
    drawn = draw(torch.empty(200_000, dtype=dtype), 0.02).double()
    assert drawn.std().item() == pytest.approx(0.02, rel=0.01)
    assert drawn.mean().abs() < 2e-4
    edge = {normal_: math.inf, uniform_: math.sqrt(3), truncated_normal_: 2 / 0.8796256610342398}
    assert drawn.abs().max() <= 0.02 * edge[draw] * (1 + torch.finfo(dtype).eps)


@pytest.mark.parametrize("draw", DRAWS)
def test_no_width_is_zero(draw):
    assert draw(torch.ones(5), 0.0).count_nonzero() == 0


def test_a_seed_repeats_the_draw_and_no_graph_is_kept():
    weights = [nn.Linear(3, 4).weight for _ in range(2)]
    for weight in weights:
        torch.manual_seed(3)
        he_(weight)
    assert torch.equal(*weights)
    assert weights[0].grad_fn is None
    assert weights[0].requires_grad


# ---- fans, against counting ---------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 4, 3, padding=1),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv1d(4, 8, 5, groups=4),
    "strided": nn.Conv2d(3, 4, 4, stride=2),
    "patches": nn.Conv2d(3, 4, 4, stride=4),
    "dilated": nn.Conv2d(3, 4, 3, dilation=2),
    "transposed": nn.ConvTranspose2d(6, 4, 3),
    "transposed, strided": nn.ConvTranspose2d(6, 4, 4, stride=2),
    "transposed, grouped": nn.ConvTranspose1d(6, 4, 4, stride=2, groups=2),
    "3d": nn.Conv3d(2, 4, 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fans_are_those_of_a_convolution_in_the_middle_of_a_large_image(name):
    """Ones in, ones as weights: an output counts what it reads, a gradient what an input feeds."""
    module = CONVOLUTIONS[name]
    dims = module.weight.ndim - 2
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(0.0)
    x = torch.ones(1, module.in_channels, *[32] * dims, requires_grad=True)
    y = module(x)
    y.sum().backward()

    def middle(values):
        for axis in range(2, values.ndim):
            start = values.shape[axis] // 2 - 4
            values = values.narrow(axis, start // 4 * 4, 4)
        return values.mean().item()

    fans = Layout.of(module).fans(module.weight)
    assert fans.fan_in == pytest.approx(middle(y))
    assert fans.fan_out == pytest.approx(middle(x.grad))


def test_a_plain_weight_has_the_fans_of_torch():
    weight = torch.empty(5, 3, 2, 2)
    assert Layout().fans(weight) == Fans(*nn.init._calculate_fan_in_and_fan_out(weight))
    assert Fans(2.0, 4.0).average == 3.0


def test_schemes_are_scaled_by_their_own_fan():
    weight = torch.empty(300, 500)
    assert he_(weight).std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert lecun_(weight).std().item() == pytest.approx(math.sqrt(1 / 500), rel=0.02)
    assert glorot_(weight).std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    fans = Fans(4.0, 12.0)
    assert he_(weight, fans=fans, gain=1.0).std().item() == pytest.approx(0.5, rel=0.02)
    assert scaled_(weight, fans.fan_out).std().item() == pytest.approx(12**-0.5, rel=0.02)


def test_glorot_is_that_of_torch():
    ours, theirs = torch.empty(7, 5), torch.empty(7, 5)
    torch.manual_seed(0)
    glorot_(ours)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, nn.init.xavier_uniform_(theirs))


@pytest.mark.parametrize(
    "module", [nn.Linear(400, 400), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3, groups=8)]
)
def test_the_signal_keeps_its_size_through_he_and_a_function(module):
    torch.manual_seed(0)
    function = nn.functional.silu
    with torch.no_grad():
        fans = Layout.of(module).fans(module.weight)
        he_(module.weight, fans=fans, gain=forward_gain(function))
        module.bias.zero_()
        x = torch.randn(
            64, module.weight.shape[1] * Layout.of(module).groups, *[8] * (module.weight.ndim - 2)
        )
        assert module(function(x)).square().mean().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("fan", "gain"), [(0, 1.0), (-1, 1.0), (math.nan, 1.0), (1, -1.0), (1, math.inf)]
)
def test_scales_that_make_no_sense_are_refused(fan, gain):
    with pytest.raises(RecipeError, match="must be"):
        scaled_(torch.empty(2, 2), fan, gain=gain)


# ---- LSUV and Fixup -----------------------------------------------------------------------------


def test_scaling_gives_the_output_the_size_that_is_asked_for():
    layer, x = nn.Linear(7, 9, bias=False), torch.randn(50, 7)
    with torch.no_grad():
        factor = scale_to_size_(layer.weight, layer(x), size=0.5)
        assert layer(x).square().mean().sqrt().item() == pytest.approx(0.5, rel=1e-5)
    assert factor > 0


@pytest.mark.parametrize("output", [torch.zeros(3), torch.tensor([math.nan]), torch.empty(0)])
def test_what_cannot_be_measured_is_not_scaled(output):
    weight = torch.ones(2)
    assert scale_to_size_(weight, output) == 1.0
    assert weight.tolist() == [1, 1]


def test_a_size_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="size must be > 0, got 0"):
        scale_to_size_(torch.ones(1), torch.ones(1), size=0)


def test_fixup_follows_the_paper():
    assert fixup_factor(2, branches=100) == pytest.approx(100**-0.5)
    assert fixup_factor(3, branches=16) == pytest.approx(16**-0.25)
    assert fixup_factor(1, branches=9) == 1.0
    first, second, last = (torch.ones(2) for _ in range(3))
    fixup_([first, second, last], branches=16)
    assert (first.tolist(), second.tolist(), last.tolist()) == ([0.5] * 2, [0.5] * 2, [0.0] * 2)


@pytest.mark.parametrize(("layers", "branches"), [(0, 3), (2, 0)])
def test_fixup_needs_layers_and_branches(layers, branches):
    with pytest.raises(RecipeError, match="at least one"):
        fixup_factor(layers, branches=branches)
