"""What a step does to the weights, against plain copies of them."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stablelightning.model.weight_watch import WeightWatch


class Network(nn.Module):
    """One of each: a table, a large matrix, a norm, several weights in one layer, a loose one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 100)
        self.large = nn.Linear(100, 300)
        self.norm = nn.LayerNorm(300)
        self.recurrent = nn.GRU(300, 6, batch_first=True)
        self.head = weight_norm(nn.Linear(6, 3))
        self.position = nn.Parameter(torch.randn(4, 100))

    def forward(self, tokens):
        hidden = self.norm(self.large(self.table(tokens) + self.position))
        return self.head(self.recurrent(hidden)[0])


OWN = {
    "table": ["table.weight"],
    "large": ["large.weight", "large.bias"],
    "recurrent": [
        f"recurrent.{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ],
    "head": [
        "head.bias",
        "head.parametrizations.weight.original0",
        "head.parametrizations.weight.original1",
    ],
    "position": ["position"],
}


def trained(network, watch, *, steps=1, **settings):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randint(0, 10, (2, 4))).square().sum().backward()
        before = watch.before_step(network.parameters(), **settings)
        optimizer.step()
        watch.after_step(before)


def joint(tensors):
    return torch.cat([tensor.detach().ravel() for tensor in tensors]).norm().item()


def test_layers_own_their_parameters_and_nothing_else_does():
    assert sorted(WeightWatch(Network()).layers) == sorted(OWN)


def test_numbers_are_those_of_whole_copies():
    network = Network()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    watch = WeightWatch(network)
    trained(network, watch)
    layout, row = watch.take()
    signals, total = watch.read(layout, row)
    now = dict(network.named_parameters())
    assert total == pytest.approx(
        joint(
            [p.grad for n, p in now.items() if "norm." not in n]
            + [p.grad for n, p in now.items() if "norm." in n]
        )
    )
    for layer, names in OWN.items():
        weights = [name for name in names if now[name].ndim >= 2]
        change = joint([now[name] - start[name] for name in weights])
        size = joint([start[name] for name in weights])
        assert signals[layer]["grad_norm"] == pytest.approx(joint([now[n].grad for n in names]))
        # Large matrices are sampled: 4096 of 30,000 and of 5,400 entries.
        near = 0.05 if layer in ("large", "recurrent") else 1e-4
        assert signals[layer]["update_ratio"] == pytest.approx(change / size, rel=near)
        assert signals[layer]["distance"] == pytest.approx(change / size, rel=near)
    assert watch.rarely_used == ["table"]


def test_a_step_that_was_skipped_counts_for_nothing():
    network = Network()
    watch = WeightWatch(network)
    network(torch.randint(0, 10, (2, 4))).sum().backward()
    watch.before_step(network.parameters())
    assert not watch.has_stepped
    signals, total = watch.read(*watch.take())
    assert total is None
    assert all(seen.keys() == {"distance"} for seen in signals.values())


def test_a_scale_is_divided_out():
    network, other = Network(), Network()
    other.load_state_dict(network.state_dict())
    norms = []
    for module, scale in ((network, None), (other, torch.tensor(8.0))):
        watch = WeightWatch(module)
        torch.manual_seed(0)
        trained(module, watch, scale=scale)
        norms.append(watch.read(*watch.take())[1])
    assert norms[0] == pytest.approx(8 * norms[1], rel=1e-5)


def test_the_start_survives():
    network = Network()
    first = WeightWatch(network)
    trained(network, first, steps=2)
    second = WeightWatch(network)  # as after a resume: the weights have moved already
    second.start_from(first.start)
    distances = [
        {n: s["distance"] for n, s in watch.read(*watch.take())[0].items()}
        for watch in (first, second)
    ]
    assert distances[0] == distances[1]
    assert min(distances[0].values()) > 0


def test_no_copy_of_the_weights_is_kept():
    layer = nn.Linear(2000, 2000)
    watch = WeightWatch(layer)
    before = watch.before_step([])
    assert watch.start.numel() <= 4096
    assert before.entries is None


def test_a_model_without_weights():
    watch = WeightWatch(nn.LayerNorm(3))
    assert watch.read(*watch.take()) == ({}, None)


def test_frozen_and_lazy_parameters():
    network = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    network[1].requires_grad_(False)
    watch = WeightWatch(network)
    assert watch.layers == ["1"]
    assert watch.read(*watch.take()) == ({}, None)
