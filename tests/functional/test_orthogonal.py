from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.functional.initialize import Layout
from stablelightning.functional.orthogonal import (
    delta_orthogonal_,
    mirrored_orthogonal_,
    orthogonal_,
)

MIRRORING = {
    "relu": (torch.relu, 1.0),
    "leaky": (lambda x: F.leaky_relu(x, 0.2), 1.2),
    "gelu": (F.gelu, 1.0),
    "silu": (F.silu, 1.0),
    "hardswish": (F.hardswish, 1.0),
}


def double(*shape):
    return torch.empty(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 8), (8, 3), (1, 6), (6, 1)])
def test_orthogonal_weights_keep_the_mean_square_of_the_units(rows, columns):
    weight = orthogonal_(double(rows, columns))
    x = torch.randn(20_000, columns, dtype=torch.float64)
    assert (x @ weight.T).square().mean().item() == pytest.approx(1.0, abs=0.05)
    short = min(rows, columns)
    gram = weight @ weight.T if rows <= columns else weight.T @ weight * columns / rows
    torch.testing.assert_close(gram, torch.eye(short, dtype=torch.float64))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv2d(3, 8, 4, stride=4),
        nn.ConvTranspose2d(6, 4, 4, stride=2),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        nn.ConvTranspose1d(3, 5, 3),
    ],
    ids=str,
)
def test_orthogonal_kernels_keep_the_mean_square_of_white_noise(module):
    with torch.no_grad():
        orthogonal_(module.weight, layout=Layout.of(module))
        module.bias.zero_()
        x = torch.randn(200, module.in_channels, *[16] * (module.weight.ndim - 2))
        y = module(x)
        inner = y[(..., *[slice(4, -4)] * (y.ndim - 2))] if y.shape[-1] > 12 else y
    assert inner.square().mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_delta_orthogonal_keeps_every_pixels_norm_at_the_border_too(size):
    convolution = nn.Conv2d(6, 6, size, padding="same", bias=False)
    with torch.no_grad():
        delta_orthogonal_(convolution.weight)
        x = torch.randn(2, 6, 5, 5)
        torch.testing.assert_close(convolution(x).norm(dim=1), x.norm(dim=1))


def test_delta_orthogonal_in_groups():
    convolution = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
    with torch.no_grad():
        delta_orthogonal_(convolution.weight, gain=2.0, layout=Layout.of(convolution))
        x = torch.randn(2, 6, 4, 4)
        torch.testing.assert_close(convolution(x).norm(dim=1), 2 * x.norm(dim=1))


@pytest.mark.parametrize("name", MIRRORING)
@pytest.mark.parametrize(
    "widths", [(8, 16, 16, 16, 4), (8, 17, 31, 16, 5), (3, 9, 9, 9, 1)], ids=str
)
def test_a_mirrored_stack_is_linear_and_keeps_differences(name, widths):
    function, slope = MIRRORING[name]
    weights = [double(after, before) for before, after in pairwise(widths)]
    for place, weight in enumerate(weights):
        first, last = place == 0, place == len(weights) - 1
        gain = 1.0 if first else 1 / slope
        mirrored_orthogonal_(weight, gain=gain, reads_mirrored=not first, makes_mirrored=not last)

    def run(x):
        for weight in weights[:-1]:
            x = function(x @ weight.T)
        return x @ weights[-1].T

    a, b = torch.randn(2, 5, widths[0], dtype=torch.float64)
    torch.testing.assert_close(run(a + 3 * b), run(a) + 3 * run(b))
    assert run(a).abs().max() > 0.01


def test_a_deep_mirrored_stack_keeps_norms_exactly():
    weights = [double(16, 16) for _ in range(200)]
    mirrored_orthogonal_(weights[0], reads_mirrored=False)
    for weight in weights[1:]:
        mirrored_orthogonal_(weight)
    x = torch.randn(4, 8, dtype=torch.float64)
    start = double(16, 8)
    h = torch.relu(x @ mirrored_orthogonal_(start, reads_mirrored=False).T)
    for weight in weights[1:]:
        h = torch.relu(h @ weight.T)
    out = h[:, :8] - h[:, 8:]
    torch.testing.assert_close(out.norm(dim=1), x.norm(dim=1))
    cosines = F.cosine_similarity(out[:2], out[2:]), F.cosine_similarity(x[:2], x[2:])
    torch.testing.assert_close(*cosines)


def test_mirrored_kernels_flattened_into_a_mirrored_head():
    first, second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
    head = nn.Linear(8 * 4 * 4, 10)
    with torch.no_grad():
        for layer in (first, second, head):
            layer.bias.zero_()
        mirrored_orthogonal_(first.weight, reads_mirrored=False)
        mirrored_orthogonal_(second.weight)
        mirrored_orthogonal_(head.weight, makes_mirrored=False)

        def run(x):
            return head(F.relu(second(F.relu(first(x)))).flatten(1))

        a, b = torch.randn(2, 3, 2, 4, 4)
        torch.testing.assert_close(run(a - b), run(a) - run(b), atol=1e-5, rtol=1e-4)


def test_a_mirrored_kernel_of_patches_keeps_the_mean_square():
    patches, after = nn.Conv2d(3, 8, 4, stride=4, bias=False), nn.Conv2d(8, 6, 1, bias=False)
    with torch.no_grad():
        mirrored_orthogonal_(patches.weight, reads_mirrored=False, centre=False)
        mirrored_orthogonal_(after.weight, makes_mirrored=False)
        x = torch.randn(200, 3, 16, 16)
        y = after(F.relu(patches(x)))
        assert y.square().mean().item() == pytest.approx(1.0, abs=0.05)
        torch.testing.assert_close(after(F.relu(patches(-2 * x))), -2 * y, atol=1e-5, rtol=1e-4)


def test_the_unit_without_a_partner_is_alive():
    weight, after = torch.empty(5, 4), torch.empty(4, 5)
    mirrored_orthogonal_(weight, reads_mirrored=False)
    mirrored_orthogonal_(after)
    assert weight[4].norm() > 0.5
    assert after[:, 4].count_nonzero() == 0


def test_halves_of_one_unit_are_refused():
    with pytest.raises(RecipeError, match="two units or more"):
        mirrored_orthogonal_(torch.empty(1, 8))
    with pytest.raises(RecipeError, match="two axes"):
        orthogonal_(torch.empty(8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_drawn_in_float32(dtype):
    weight = orthogonal_(torch.empty(16, 16, dtype=dtype)).float()
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=2e-2, rtol=0)


def test_weights_that_lie_channels_last_in_memory_are_filled_alike():
    plain = torch.empty(4, 4, 3, 3)
    last = torch.empty(4, 4, 3, 3).to(memory_format=torch.channels_last)
    for weight in (plain, last):
        torch.manual_seed(0)
        orthogonal_(weight)
    assert torch.equal(plain, last)
