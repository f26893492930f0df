import pytest
import torch
from torch import nn

from stablelightning.errors import ModelError
from stablelightning.model.loaded import loaded_parameters
from stablelightning.model.pretrained import below_head, give_outputs, inner_network, take_over
from stablelightning.nn import MLP, ConvNet


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def test_a_network_is_known_by_its_name_or_by_being_alone():
    holder = nn.Module()
    holder.body = nn.Linear(2, 3)
    holder.loss = nn.CrossEntropyLoss()
    assert inner_network(holder) == ("body", holder.body)
    holder.network = nn.Linear(2, 2)
    assert inner_network(holder) == ("network", holder.network)


@pytest.mark.parametrize("children", [[], ["a", "b"]])
def test_none_or_several_are_told(children):
    holder = nn.ModuleDict({name: nn.Linear(2, 2) for name in children})
    with pytest.raises(ModelError, match="call that of the network 'network'"):
        inner_network(holder)


def test_a_head_that_fits_stays():
    model = ConvNet(1, 5, channels=[4])
    head = model.head
    for outputs in (None, 5):
        give_outputs(model, outputs)
        assert model.head is head
    give_outputs(model, 7)
    assert model.head.out_features == 7


def test_the_head_is_not_below_itself():
    names = set(below_head(net()))
    assert names == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }


def test_values_are_written_in_place_and_count_as_loaded():
    model, other = net(), net()
    model[0].weight.requires_grad_(False)
    kept = {name: id(value) for name, value in model.named_parameters()}
    head = model[3].weight.clone()
    other[1].running_mean.fill_(3.0)
    written = take_over(model, {**other.state_dict(), "no.such": torch.zeros(1)})
    assert set(written) == set(below_head(model))
    assert {name: id(value) for name, value in model.named_parameters()} == kept
    assert torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(model[1].running_mean, other[1].running_mean)
    assert torch.equal(model[3].weight, head)
    assert not model[0].weight.requires_grad
    assert loaded_parameters(model) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_other_shapes_are_passed_over_and_nothing_at_all_is_told():
    model = MLP(4, 3, hidden=[8])
    values = {"body.0.weight": torch.zeros(9, 4), "body.0.bias": torch.ones(8)}
    assert take_over(model, values) == ["body.0.bias"]
    with pytest.raises(ModelError, match="none of 1 tensors does"):
        take_over(model, {"body.0.weight": torch.zeros(9, 4)})


def test_layers_without_sizes_are_told():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(ModelError, match=r"0\.weight has none yet"):
        below_head(model)
