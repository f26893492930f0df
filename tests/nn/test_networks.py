"""The small networks: shapes, where dropout sits, refusals, and that they learn and are sampled."""

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn import MLP, ConvNet, DeepMLP, Gaussian, RecurrentNet, VariationalGRU


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("shape", [(5, 64), (5, 1, 8, 8), (5, 4, 16)])
def test_mlp_flattens_each_row(shape: tuple[int, ...]) -> None:
    assert MLP(64, 10)(torch.randn(shape)).shape == (5, 10)


def test_mlp_has_one_dropout_per_hidden_layer() -> None:
    network = MLP(4, 2, hidden=(8, 16, 32), dropout=0.3)
    assert count(network, nn.Dropout) == 3
    assert [m.out_features for m in network.modules() if isinstance(m, nn.Linear)] == [8, 16, 32, 2]
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_mlp_without_hidden_layers_is_linear() -> None:
    network, inputs = MLP(4, 2, hidden=()), torch.randn(3, 4)
    assert torch.equal(network(inputs), network.head(inputs))
    assert count(network, nn.Linear) == 1


@pytest.mark.parametrize("size", [8, 9, 28, 33])
@pytest.mark.parametrize("stages", [1, 3, 5])
def test_convnet_takes_images_from_eight_pixels_up(size: int, stages: int) -> None:
    network = ConvNet(3, 7, channels=[4] * stages)
    assert network(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("network", [MLP(64, variance=True), ConvNet(1, variance=True)])
def test_variance_gives_a_gaussian_of_one_number_per_row(network: nn.Module) -> None:
    output = network(torch.randn(5, 1, 8, 8))
    assert isinstance(output, Gaussian)
    assert output.mean.shape == output.variance.shape == (5,)
    assert (output.variance > 0).all()


@pytest.mark.parametrize("network", [MLP(64, 3, dropout=0.5), ConvNet(1, 3, dropout=0.5)])
def test_dropout_is_live_in_training_only(network: nn.Module) -> None:
    inputs = torch.randn(4, 1, 8, 8)
    network.train()
    assert not torch.equal(network(inputs), network(inputs))
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


@pytest.mark.parametrize("network", [MLP(64, 2, activation=nn.Tanh), ConvNet(1, 2)])
def test_every_parameter_gets_a_gradient(network: nn.Module) -> None:
    network(torch.randn(6, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_activation_is_made_anew_for_every_layer() -> None:
    network = MLP(4, 2, activation=nn.PReLU)
    assert count(network, nn.PReLU) == 2


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("kind", [MLP, ConvNet])
def test_a_rate_outside_its_range_is_refused(kind: type[nn.Module], dropout: float) -> None:
    with pytest.raises(RecipeError, match=r"dropout must be in \[0, 1\)"):
        kind(1, 2, dropout=dropout)


def test_layers_without_a_width_are_refused() -> None:
    with pytest.raises(RecipeError, match="hidden must be >= 1, got 0"):
        MLP(4, 2, hidden=(8, 0))
    with pytest.raises(RecipeError, match="out_features must be >= 1, got 0"):
        MLP(4, 0)
    with pytest.raises(RecipeError, match="in_channels must be >= 1, got 0"):
        ConvNet(0, 2)
    with pytest.raises(RecipeError, match="at least one stage"):
        ConvNet(1, 2, channels=())


def described(name: str, **arguments: object) -> nn.Module:
    """A network of ours made by the parser of recipes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    network = {"class_path": f"stablelightning.nn.{name}", "init_args": arguments}
    config = parser.parse_object({"network": network})
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)  # renamed in 4.49
    return instantiate(config).network


def test_a_recipe_can_describe_them() -> None:
    settings = {"hidden": [16], "dropout": 0.2, "activation": "torch.nn.GELU"}
    network = described("MLP", in_features=4, out_features=2, **settings)
    assert isinstance(network, MLP)
    assert count(network, nn.GELU) == 1
    assert network(torch.randn(3, 4)).shape == (3, 2)


def test_a_deep_mlp_is_an_mlp_of_equal_layers() -> None:
    network = DeepMLP(4, 2, depth=3, width=8, activation=nn.SELU)
    same = MLP(4, 2, hidden=[8, 8, 8], activation=nn.SELU, dropout=0.0)
    same.load_state_dict(network.state_dict())
    rows = torch.randn(5, 4)
    assert torch.equal(network(rows), same(rows))
    with pytest.raises(RecipeError, match="depth must be >= 1, got 0"):
        DeepMLP(4, depth=0)


@pytest.mark.parametrize("shape", [(5, 64), (5, 1, 8, 8), (5, 8, 8), (5, 3, 8)])
def test_a_recurrent_net_cuts_each_row_into_steps(shape: tuple[int, ...]) -> None:
    network, inputs = RecurrentNet(8, 10, hidden=(12, 6)).eval(), torch.randn(shape)
    states = inputs.flatten(1).unflatten(1, (-1, 8))
    for layer in network.layers:
        states, _ = layer(states)
    assert torch.equal(network(inputs), network.head(states[:, -1]))


def test_a_row_that_is_no_whole_number_of_steps_is_refused() -> None:
    with pytest.raises(DataError, match="steps of 8, got 63 numbers"):
        RecurrentNet(8, 10)(torch.randn(5, 63))
    with pytest.raises(RecipeError, match="at least one layer"):
        RecurrentNet(8, 10, hidden=())


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN, VariationalGRU])
def test_a_recurrent_net_takes_other_layers(layer: type[nn.Module]) -> None:
    output = RecurrentNet(4, 2, layer=layer, variance=True)(torch.randn(3, 5, 4))
    assert isinstance(output, Gaussian)
    assert output.variance.shape == (3, 2)


def test_a_recipe_can_describe_the_layers_of_a_recurrent_net() -> None:
    settings = {"dropout": 0.1, "recurrent_dropout": 0.2, "layer_norm": True}
    layer = {"class_path": "stablelightning.nn.VariationalGRU", "init_args": settings}
    network = described("RecurrentNet", in_features=4, out_features=2, hidden=[6, 5], layer=layer)
    assert isinstance(network, RecurrentNet)
    for made in network.layers:
        assert isinstance(made, VariationalGRU)
        assert (made.batch_first, made.layer_norm) == (True, True)
        assert (made.input_dropout.p, made.recurrent_dropout.p) == (0.1, 0.2)
