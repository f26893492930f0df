"""Stacked networks are what they were alone: outputs, gradients, buffers, one at a time."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stablelightning.errors import EngineError, ModelError, RecipeError
from stablelightning.model.stacked import StackedNetworks
from stablelightning.nn import MLP, ConvNet, RecurrentNet

MEMBERS = 3


class Replaces(nn.Module):
    """Counts its passes by putting a new buffer in the place of the old one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes = self.passes + 1
        return self.layer(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


class Reads(nn.Module):
    """Control flow that depends on values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        y = self.layer(x)
        return y if y.sum() > 0 else -y


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(40, 3))


def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 2))


KINDS = {
    "perceptron": (lambda: MLP(4, 3, hidden=[8], dropout=0.0), (6, 4)),
    "gaussian": (lambda: MLP(4, hidden=[8], dropout=0.0, variance=True), (6, 4)),
    "convolutions": (lambda: ConvNet(1, 3, channels=[4, 8], dropout=0.0), (6, 1, 8, 8)),
    "batch norm": (normed, (6, 4)),
    "transformer": (transformer, (6, 5, 8)),
    "lstm": (lambda: RecurrentNet(4, 2, hidden=[5], dropout=0.0), (6, 7, 4)),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
        (6, 4),
    ),
    "tied": (Tied, (6, 4)),
    "replaces a buffer": (Replaces, (6, 4)),
    "reads values": (Reads, (6, 4)),
}


def loss_of(output):
    if isinstance(output, Tensor := torch.Tensor):
        return output.square().mean()
    assert isinstance(output.mean, Tensor)
    return (output.mean.square() + output.variance).mean()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_computes_what_its_networks_compute_alone(kind, training):
    make, shape = KINDS[kind]
    networks = [make().train(training) for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks).train(training)
    x = torch.randn(shape)

    losses = stacked.map(lambda: loss_of(stacked(x)))
    losses.sum().backward()
    alone = [loss_of(network(x)) for network in networks]
    for loss in alone:
        loss.backward()

    torch.testing.assert_close(losses, torch.stack(alone))
    for name, parameter in stacked.networks.named_parameters():
        expected = torch.stack([n.get_parameter(name).grad for n in networks])
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    for name, buffer in stacked.networks.named_buffers():
        torch.testing.assert_close(buffer, torch.stack([n.get_buffer(name) for n in networks]))


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_agree(kind):
    make, shape = KINDS[kind]
    networks = [make() for _ in range(MEMBERS)]
    x = torch.randn(shape)
    one, other = StackedNetworks(networks).eval(), StackedNetworks(networks, engine="loop").eval()
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize("kind", ["perceptron", "convolutions", "transformer", "tied"])
def test_what_vmap_can_do_is_done_by_vmap(kind):
    make, shape = KINDS[kind]
    stacked = StackedNetworks([make() for _ in range(MEMBERS)], engine="vmap")
    assert stacked(torch.randn(shape)).shape[:2] == (MEMBERS, 6)
    assert stacked.refusal == ""


@pytest.mark.parametrize("kind", ["lstm", "reads values", "replaces a buffer"])
def test_what_vmap_refuses_is_an_error_where_it_was_asked_for_by_name(kind):
    make, shape = KINDS[kind]
    networks = [make() for _ in range(MEMBERS)]
    auto = StackedNetworks(networks)
    auto(torch.randn(shape))
    assert auto.refusal
    with pytest.raises(EngineError, match="use engine='auto'"):
        StackedNetworks(networks, engine="vmap")(torch.randn(shape))


def test_a_refused_pass_leaves_no_trace_in_the_buffers():
    networks = [nn.Sequential(nn.BatchNorm1d(4), Reads()) for _ in range(MEMBERS)]
    x = torch.randn(6, 4)
    stacked = StackedNetworks(networks)
    stacked(x)
    for network in networks:
        network(x)
    expected = torch.stack([network[0].running_mean for network in networks])
    torch.testing.assert_close(stacked.networks[0].running_mean, expected)
    assert stacked.networks[0].num_batches_tracked.tolist() == [1] * MEMBERS


def test_an_error_of_the_network_itself_is_told_as_it_is():
    stacked = StackedNetworks([nn.Linear(4, 2) for _ in range(MEMBERS)])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        stacked(torch.randn(6, 5))
    assert stacked.refusal == ""


def test_every_member_draws_its_own_dropout():
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 64))
    stacked = StackedNetworks([network] * MEMBERS, engine="vmap")
    first, second, third = stacked(torch.ones(4, 64))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_inputs_of_their_own():
    networks = [nn.Linear(4, 2) for _ in range(MEMBERS)]
    x = torch.randn(MEMBERS, 6, 4)
    expected = torch.stack([network(own) for network, own in zip(networks, x, strict=True)])
    for engine in ("vmap", "loop"):
        torch.testing.assert_close(StackedNetworks(networks, engine=engine).each(x), expected)


def test_settings_of_their_own_as_buffers():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale))

        def forward(self, x):
            return x * self.scale

    stacked = StackedNetworks([Scaled(s) for s in (1.0, 2.0, 3.0)], engine="vmap")
    assert stacked(torch.ones(1)).flatten().tolist() == [1.0, 2.0, 3.0]


def test_training_a_stack_is_training_each_alone():
    make, shape = KINDS["batch norm"]
    networks = [make() for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks)
    together = torch.optim.SGD(stacked.parameters(), lr=0.05, momentum=0.9)
    apart = [torch.optim.SGD(n.parameters(), lr=0.05, momentum=0.9) for n in networks]
    for _ in range(5):
        x, y = torch.randn(shape), torch.randn(6, 2)
        stacked.map(lambda x=x, y=y: F.mse_loss(stacked(x), y)).sum().backward()
        together.step()
        together.zero_grad()
        for network, optimizer in zip(networks, apart, strict=True):
            F.mse_loss(network(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for number, network in enumerate(networks):
        for name, value in stacked.member(number).state_dict().items():
            torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_the_stack_is_one_member_for_a_while():
    networks = [KINDS["lstm"][0]() for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks)
    before = copy.deepcopy(stacked.state_dict())
    x = torch.randn(2, 7, 4)
    with stacked.as_member(1) as network:
        assert stacked.chosen == 1
        torch.testing.assert_close(stacked(x), networks[1](x))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    assert stacked.chosen is None
    for name, value in stacked.state_dict().items():
        assert torch.equal(value[0], before[name][0])
        assert not value[1].any()


def test_a_member_alone_is_free_of_the_stack():
    networks = [KINDS["batch norm"][0]() for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks)
    alone = stacked.member(2)
    for name, value in networks[2].state_dict().items():
        assert torch.equal(alone.state_dict()[name], value)
    for tensor in alone.state_dict().values():
        tensor.zero_()
    assert stacked.networks[0].weight[2].any()
    assert sum(b.untyped_storage().nbytes() for b in alone.buffers()) < 100


def test_frozen_stays_frozen_and_the_networks_are_only_read():
    networks = [nn.Linear(4, 2) for _ in range(MEMBERS)]
    networks[0].bias.requires_grad_(False)
    stacked = StackedNetworks(networks)
    assert not stacked.networks.bias.requires_grad
    assert stacked.networks.weight.requires_grad
    assert networks[0].weight.shape == (2, 4)


def test_a_stack_is_saved_and_loaded_under_the_names_of_one_network():
    networks = [nn.Linear(4, 2) for _ in range(MEMBERS)]
    stacked = StackedNetworks(networks)
    assert set(stacked.state_dict()) == {"networks.weight", "networks.bias"}
    other = StackedNetworks([nn.Linear(4, 2) for _ in range(MEMBERS)])
    other.load_state_dict(stacked.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(other(x), stacked(x))


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ([], "one or more modules"),
        ([nn.Linear(4, 2), nn.Linear(4, 3)], "'networks.bias' differs"),
        ([nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2))], "differs"),
        ([nn.ReLU(), nn.Tanh()], "it is a Tanh"),
        ([nn.LazyLinear(2)], "lazy"),
    ],
)
def test_networks_that_cannot_be_stacked(networks, said):
    with pytest.raises(ModelError, match=said):
        StackedNetworks(networks)


def test_bad_settings():
    with pytest.raises(RecipeError, match="engine must be one of"):
        StackedNetworks([nn.Linear(4, 2)], engine="fast")
    with (
        pytest.raises(RecipeError, match="0 to 0, got 1"),
        StackedNetworks([nn.Linear(4, 2)]).as_member(1),
    ):
        pass
