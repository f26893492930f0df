"""What is added to a network renames nothing, travels with copies, and starts as it says."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.nn.added import AddedScale, AddedSkip, SkippingSequential, add_norm

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def skipping(scale: float = 0.5) -> SkippingSequential:
    return SkippingSequential.converted(chain(), [("0", "1"), ("2", "3")], scale=scale)


def test_a_skipping_sequential_adds_what_went_into_each_run():
    net, plain = skipping(), chain()
    one = ROWS + 0.5 * plain[1](plain[0](ROWS))
    two = one + 0.5 * plain[3](plain[2](one))
    torch.testing.assert_close(net(ROWS), plain[4](two))


def test_it_is_the_same_object_with_the_same_parameters():
    net = chain()
    parameters = dict(net.named_parameters())
    same = SkippingSequential.converted(net, [("0", "3")])
    assert same is net
    now = dict(net.named_parameters())
    assert all(now[name] is parameter for name, parameter in parameters.items())
    assert set(now) - set(parameters) == {"skip_scale_0"}


@pytest.mark.parametrize(
    "spans", [[("0", "9")], [("3", "0")], [("0", "2"), ("2", "3")], [("2", "3"), ("0", "1")]]
)
def test_bad_spans_change_nothing(spans):
    net = chain()
    with pytest.raises(RecipeError, match="without overlap"):
        SkippingSequential.converted(net, spans)
    assert type(net) is nn.Sequential
    assert len(list(net.parameters())) == 6


def test_other_containers_are_refused():
    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.raises(ModelError, match="Own"):
        SkippingSequential.converted(Own(nn.Linear(4, 4)), [("0", "0")])


def skip_around():
    layer = chain()[0]
    AddedSkip(0.5).around(layer)
    return layer, ROWS + 0.5 * chain()[0](ROWS)


def scale_behind():
    layer = chain()[0]
    AddedScale(3.0).behind(layer)
    return layer, 3 * chain()[0](ROWS)


def norm_behind():
    layer = chain()[0]
    add_norm(layer, nn.LayerNorm(4))
    return layer, nn.functional.layer_norm(chain()[0](ROWS), (4,))


ADDED = [skip_around, scale_behind, norm_behind]


@pytest.mark.parametrize("make", ADDED)
def test_what_is_added_acts(make):
    layer, expected = make()
    torch.testing.assert_close(layer(ROWS), expected)
    assert list(layer.state_dict())[:2] == ["weight", "bias"]


@pytest.mark.parametrize("make", [*ADDED, lambda: (skipping(), None)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_act_by_their_own(make, copied):
    layer, _ = make()
    other = copied(layer)
    torch.testing.assert_close(other(ROWS), layer(ROWS))
    before = layer(ROWS).clone()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(layer(ROWS), before)
    assert not torch.allclose(other(ROWS), before)


@pytest.mark.parametrize("make", ADDED)
def test_adding_twice_is_refused(make):
    layer, _ = make()
    with pytest.raises(ModelError, match="one is enough"):
        (AddedSkip().around, AddedScale().behind, lambda m: add_norm(m, nn.LayerNorm(4)))[
            ADDED.index(make)
        ](layer)


def test_dtype_and_mode_are_those_of_the_layer():
    layer = nn.Linear(4, 4).double().eval()
    AddedSkip(0.5).around(layer)
    add_norm(layer, nn.BatchNorm1d(4))
    assert layer.added_skip.scale.dtype == layer.added_norm.weight.dtype == torch.float64
    assert not layer.added_norm.training
    assert layer(ROWS.double()).dtype == torch.float64


def test_a_norm_behind_a_recurrent_layer_takes_the_outputs():
    torch.manual_seed(0)
    layer = nn.GRU(4, 5, batch_first=True)
    plain, state = layer(ROWS[None])
    add_norm(layer, nn.LayerNorm(5))
    output, same_state = layer(ROWS[None])
    torch.testing.assert_close(output, nn.functional.layer_norm(plain, (5,)))
    torch.testing.assert_close(same_state, state)


def test_gradients_reach_every_branch_from_a_small_scale():
    net = skipping(0.01)
    net(ROWS).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
