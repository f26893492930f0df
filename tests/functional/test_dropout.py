"""Cheap masks have the law of dropout, and attention in the open is torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from stablelightning.functional.dropout import attention_with_dropout, dropout_from_integers


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rate_and_scale(p: float, dtype: torch.dtype) -> None:
    x = torch.ones(400, 250, dtype=dtype)
    dropped = dropout_from_integers(x, p)
    assert dropped.dtype == dtype
    zero, kept = dropped.unique().tolist()
    assert zero == 0
    assert kept == pytest.approx(1 / (1 - p), rel=0.01 if dtype == torch.bfloat16 else 1e-3)
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / x.numel())
    assert torch.equal(x, torch.ones_like(x))


def test_elements_are_independent() -> None:
    kept = (dropout_from_integers(torch.ones(1 << 18), 0.5) > 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 16, 1024):
        correlation = (kept[lag:] * kept[:-lag]).mean() / 0.25
        assert correlation.abs() < 5 / math.sqrt(len(kept))


@pytest.mark.parametrize("shape", [(3, 5, 7, 41), (2049,), (64, 33)])
def test_any_shape_and_memory_format(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for given in (x, x.transpose(0, -1)):
        dropped = dropout_from_integers(given, 0.25)
        assert dropped.shape == given.shape
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], given[kept] / 0.75)


@pytest.mark.parametrize(("shape", "p"), [((4, 4), 0.5), ((64, 64), 0.001)])
def test_small_tensors_and_tiny_rates_are_torchs_own(shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape)
    torch.manual_seed(0)
    expected = F.dropout(x, p)
    torch.manual_seed(0)
    assert torch.equal(dropout_from_integers(x, p), expected)


def masks() -> list[torch.Tensor | None]:
    triangle = torch.ones(5, 6, dtype=torch.bool).tril()
    return [None, triangle, torch.randn(5, 6), torch.randn(2, 1, 5, 6)]


@pytest.mark.parametrize("mask", masks(), ids=["none", "boolean", "added", "per row"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torchs(mask: torch.Tensor | None, scale: float | None) -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 4)
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    found = attention_with_dropout(q, k, v, mask=mask, p=0.0, scale=scale)
    torch.testing.assert_close(found, expected)
    many = (x.expand(4000, *x.shape[1:]) for x in (q[:1], k[:1], v[:1]))
    mask = mask[:1] if mask is not None and mask.ndim == 4 else mask
    drawn = attention_with_dropout(*many, mask=mask, p=0.4, scale=scale)
    z = (drawn.mean(0) - expected[0]) / (drawn.std(0) / math.sqrt(4000)).clamp(min=1e-4)
    assert z.abs().max() < 5
    assert drawn.std(0).max() > 0.1
