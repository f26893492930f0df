"""The Gaussian head: shapes, positivity, and that tools for whole models pass through it."""

import pytest
import torch
from torch.utils import _pytree as pytree

from stablelightning.errors import RecipeError
from stablelightning.functional.scores import gaussian_negative_log_likelihood
from stablelightning.nn import Gaussian, GaussianHead
from stablelightning.nn.heads import VARIANCE_FLOOR


@pytest.mark.parametrize(
    ("features", "targets", "shape"),
    [((5, 8), 1, (5,)), ((5, 8), 3, (5, 3)), ((5, 7, 8), 1, (5, 7)), ((8,), 2, (2,))],
)
def test_shapes(features: tuple[int, ...], targets: int, shape: tuple[int, ...]) -> None:
    output = GaussianHead(8, targets)(torch.randn(features))
    assert isinstance(output, Gaussian)
    assert output.mean.shape == output.variance.shape == shape


def test_variance_never_falls_below_its_floor() -> None:
    head = GaussianHead(1)
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
    variance = head(torch.tensor([[-1e4], [-50.0], [0.0], [1e4]])).variance
    assert (variance >= VARIANCE_FLOOR).all()
    assert torch.isfinite(variance).all()
    assert variance[-1].item() == pytest.approx(1e4, rel=1e-3)


def test_mean_and_variance_are_learned_by_the_likelihood() -> None:
    torch.manual_seed(0)
    inputs = torch.zeros(4000, 1)
    target = 2.0 + 0.5 * torch.randn(4000)
    head = GaussianHead(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        gaussian_negative_log_likelihood(*head(inputs), target).mean().backward()
        optimizer.step()
    mean, variance = head(inputs[:1])
    assert mean.item() == pytest.approx(2.0, abs=0.05)
    assert variance.item() == pytest.approx(0.25, rel=0.1)


def test_vmap_and_pytrees_pass_through() -> None:
    head, inputs = GaussianHead(4, 2), torch.randn(3, 5, 4)
    batched = torch.vmap(head)(inputs)
    assert isinstance(batched, Gaussian)
    torch.testing.assert_close(batched.mean, torch.stack([head(x).mean for x in inputs]))
    doubled = pytree.tree_map(lambda value: 2 * value, batched)
    assert isinstance(doubled, Gaussian)
    assert torch.equal(doubled.variance, 2 * batched.variance)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 1), (4, 0)])
def test_no_features_are_refused(inputs: int, outputs: int) -> None:
    with pytest.raises(RecipeError, match="features must be >= 1, got 0"):
        GaussianHead(inputs, outputs)
