"""Plain chains side by side are what each network is alone: values, gradients, draws, refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stablelightning.model.side_by_side import layers_of
from stablelightning.model.stacked import StackedNetworks
from stablelightning.nn import MLP

MEMBERS = 3
CHAINS = {
    "perceptron": (lambda: MLP(6, 3, hidden=[8], dropout=0.0), (5, 2, 3)),
    "norm first": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), (5, 4)),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)),
        (5, 4),
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)),
        (5, 7, 4),
    ),
    "nothing learned": (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), (5, 2, 3)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_values_and_gradients_are_those_of_each_alone(name):
    make, shape = CHAINS[name]
    networks = [make() for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks)
    assert layers_of(stacked.networks) is not None
    x = torch.randn(shape)
    expected = torch.stack([network(x) for network in networks])
    torch.testing.assert_close(stacked(x), expected)
    losses = stacked.map(lambda: stacked(x).square().mean())
    torch.testing.assert_close(losses, expected.square().flatten(1).mean(1))
    if not expected.requires_grad:
        return
    losses.sum().backward()
    expected.square().flatten(1).mean(1).sum().backward()
    for stack, *alone in zip(
        stacked.parameters(), *[n.parameters() for n in networks], strict=True
    ):
        torch.testing.assert_close(stack.grad, torch.stack([p.grad for p in alone]))


@pytest.mark.parametrize("ignored", [False, True])
def test_the_cross_entropy_is_that_of_each_alone(ignored):
    networks = [MLP(4, 3, hidden=[8], dropout=0.0) for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks, engine="vmap")
    x, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    if ignored:
        target[::2] = -100
    found = stacked.map(lambda: F.cross_entropy(stacked(x), target))
    torch.testing.assert_close(
        found, torch.stack([F.cross_entropy(network(x), target) for network in networks])
    )


def test_every_member_and_row_has_a_mask_of_its_own():
    stacked = StackedNetworks([nn.Sequential(nn.Dropout(0.5), nn.Flatten())] * MEMBERS)
    masks = stacked(torch.ones(2, 200)) == 0
    assert len({tuple(mask.tolist()) for mask in masks.flatten(0, 1)}) == 2 * MEMBERS
    assert 0.4 < masks.float().mean() < 0.6
    stacked.eval()
    assert (stacked(torch.ones(2, 200)) == 1).all()


def test_a_function_that_puts_other_weights_in_place_is_heeded():
    networks = [nn.Linear(4, 2) for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks, engine="vmap")
    x = torch.randn(5, 4)

    def doubled():
        twice = {name: 2 * p for name, p in stacked.networks.named_parameters()}
        return torch.func.functional_call(stacked.networks, twice, (x,))

    expected = torch.stack([2 * network(x) for network in networks])
    torch.testing.assert_close(stacked.map(doubled), expected)


def test_hooks_are_called():
    stacked = StackedNetworks([nn.Sequential(nn.Linear(4, 2)) for _ in range(MEMBERS)])
    seen = []
    stacked.networks[0].register_forward_hook(lambda *_: seen.append(1))
    assert layers_of(stacked.networks) is None
    stacked(torch.randn(5, 4))
    assert seen


@pytest.mark.parametrize(
    "network", [nn.Conv2d(1, 1, 3), nn.ReLU(inplace=True), nn.Flatten(0), nn.BatchNorm1d(3)]
)
def test_what_is_no_plain_chain_is_left_to_vmap(network):
    assert layers_of(nn.Sequential(network)) is None
