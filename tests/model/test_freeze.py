"""Frozen groups: no gradient, no graph, norms in eval, and no trace of it in what is kept."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm

from stablelightning.errors import RecipeError
from stablelightning.model.depth import depth_groups
from stablelightning.model.freeze import (
    freeze,
    keeps_statistics,
    open_last,
    release_norms,
    trainable_parameters,
    unfreeze,
    without,
)

NORMS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm1d(4, affine=False),
    nn.BatchNorm1d(4, momentum=None),
    nn.SyncBatchNorm(4),
]


class OwnNorm(nn.Module):
    """Like a batch norm, and of no class of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))
        self.inside = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean += x.detach().mean(0)
        return self.inside((x - self.running_mean) * self.scale)


def network(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4) if norm is None else copy.deepcopy(norm)
    return nn.Sequential(
        *(nn.Linear(4, 4), norm, nn.Tanh(), nn.Dropout(0.5)),
        *(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()),
        nn.Linear(4, 2),
    )


def frozen(norm: nn.Module | None = None, count: int = 1) -> nn.Sequential:
    net = network(norm)
    open_last(net, depth_groups(net), count)
    return net


def contents(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- no gradient, no graph -----------------------------------------------------------------------


def test_the_last_groups_are_open():
    net = frozen(count=2)
    assert [p.requires_grad for p in net.parameters()] == 4 * [False] + 6 * [True]
    assert trainable_parameters(net) == (16 + 4) + 8 + (8 + 2)


def test_frozen_layers_make_no_graph():
    net = frozen(count=1)
    seen = []
    for place in (3, 6, 7):
        net[place].register_forward_hook(lambda _m, _a, out: seen.append(out.grad_fn))
    net(torch.randn(5, 4))
    assert seen[0] is None
    assert seen[1] is None
    assert seen[2] is not None


def test_gradients_that_are_there_go():
    net = network()
    net(torch.randn(5, 4)).sum().backward()
    open_last(net, depth_groups(net), 1)
    assert [p.grad is None for p in net.parameters()] == 8 * [True] + 2 * [False]


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1, foreach=True),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1, fused=True),
        lambda ps: torch.optim.RMSprop(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda ps: torch.optim.Rprop(ps, lr=0.1),
    ],
    ids=["sgd", "adamw", "foreach", "fused", "rmsprop", "rprop"],
)
@pytest.mark.parametrize("to_none", [True, False])
def test_neither_momentum_nor_decay_moves_what_is_frozen(make, to_none):
    net = network()
    optimizer = make(net.parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=to_none)
        net(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()

    step()  # there is momentum now, in all of them
    open_last(net, depth_groups(net), 1)
    before = contents(net)
    for _ in range(3):
        step()
    after = contents(net)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"7.weight", "7.bias"}
    open_last(net, depth_groups(net), 3)
    step()
    assert not torch.equal(net[0].weight, before["0.weight"])


def test_equal_parameters_are_told_apart():
    net = network()
    for place in (0, 4, 7):
        nn.init.zeros_(net[place].bias)
    open_last(net, depth_groups(net), 2)
    assert [net[place].bias.requires_grad for place in (0, 4, 7)] == [False, True, True]


# ---- norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: str(norm)[:30])
def test_frozen_norms_stay_in_eval_through_train(norm):
    net = network(norm)
    open_last(net, depth_groups(net), 2)
    before = contents(net[1])
    expected = copy.deepcopy(net[:2]).eval()
    for _ in range(2):
        net.train()
        x = torch.randn(6, 4)
        assert torch.equal(net[:2](x), expected(x))
        net.eval()
    assert same(contents(net[1]), before)
    assert not net[1].training
    assert net.train()[5].training
    open_last(net, depth_groups(net), 3)
    assert net[1].training
    net.train()
    assert net[1].training


def test_instance_norm_with_statistics():
    net = nn.Sequential(
        nn.Conv1d(2, 3, 1), nn.InstanceNorm1d(3, track_running_stats=True), nn.Conv1d(3, 1, 1)
    )
    open_last(net, depth_groups(net), 1)
    before = contents(net)
    net.train()(torch.randn(4, 2, 5))
    assert same(contents(net), before)


@pytest.mark.parametrize(
    ("module", "keeps"),
    [
        (nn.BatchNorm2d(3), True),
        (nn.BatchNorm2d(3, track_running_stats=False), False),
        (nn.InstanceNorm2d(3), False),
        (nn.GroupNorm(1, 3), False),
        (nn.Dropout(0.5), False),
        (OwnNorm(), True),
        (hooked_spectral_norm(nn.Linear(3, 3)), True),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_keeps_statistics(module, keeps):
    assert keeps_statistics(module) is keeps


@pytest.mark.parametrize("normed", [spectral_norm, hooked_spectral_norm])
def test_spectral_norm_of_a_frozen_layer_stands_still(normed):
    net = nn.Sequential(normed(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2))
    open_last(net, depth_groups(net), 1)
    net.train()
    x = torch.randn(3, 4)
    first = net[0](x)
    assert torch.equal(net[0](x), first)
    open_last(net, depth_groups(net), 2)
    net[0](x)
    assert not torch.equal(net[0](x), first)


def test_what_a_norm_holds_follows_train():
    net = nn.Sequential(nn.Linear(4, 4), OwnNorm(), nn.Linear(4, 2))
    open_last(net, depth_groups(net), 1)
    net.train()
    assert not net[1].training
    assert net[1].inside.training
    net.eval()
    assert not net[1].inside.training


def test_dropout_of_a_frozen_group_goes_on():
    assert frozen().train()[3].training


def test_a_norm_that_its_user_put_into_eval_stays_there():
    net = network()
    net[1].eval()
    groups = depth_groups(net)
    open_last(net, groups, 1)
    open_last(net, groups, 3)
    assert not net[1].training
    assert net[5].training


def test_an_opened_norm_has_the_mode_of_what_is_around_it():
    net = frozen()
    net.eval()
    open_last(net, depth_groups(net), 3)
    assert not net[1].training
    assert "train" not in vars(net[1])


def test_a_method_of_the_users_own_comes_back():
    net = network()

    def stays(mode: bool = True) -> nn.Module:
        return net[1]

    net[1].eval()
    net[1].train = stays
    groups = depth_groups(net)
    open_last(net, groups, 1)
    open_last(net, groups, 3)
    assert net[1].train is stays
    assert not net.train()[1].training


# ---- the state is left alone ---------------------------------------------------------------------


def test_frozen_models_keep_their_keys_and_contents():
    net, plain = frozen(), network()
    assert same(contents(net), contents(plain))
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    fresh = network()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert repr(fresh) == repr(net)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_frozen_by_itself(copied):
    net = frozen()
    twin = copied(net)
    assert same(contents(twin), contents(net))
    assert not twin.train()[1].training
    assert vars(twin[1])["train"].module is twin[1]
    open_last(twin, depth_groups(twin), 3)
    assert twin[1].training
    assert not net.train()[1].training
    assert not net[0].weight.requires_grad


def test_a_copied_norm_does_not_bring_the_network_along():
    net = frozen()
    assert len(pickle.dumps(net[1])) < 3 * len(pickle.dumps(network()[1]))


# ---- calls ---------------------------------------------------------------------------------------


def test_freezing_twice_is_freezing_once():
    net = network()
    first, *_ = groups = depth_groups(net)
    freeze(net, first)
    freeze(net, first)
    unfreeze(net, first)
    assert net[1].training
    assert all(p.requires_grad for group in groups for p in net.parameters())
    assert "train" not in vars(net[1])


def test_norms_can_wait_and_be_released_alone():
    net = network()
    groups = depth_groups(net)
    open_last(net, groups, 1, norms=False)
    assert net[1].training
    open_last(net, groups, 1)
    assert not net[1].training
    release_norms(net, groups)
    assert net[1].training
    assert not net[1].weight.requires_grad


@pytest.mark.parametrize("count", [-1, 4])
def test_no_more_than_there_are(count):
    net = network()
    with pytest.raises(RecipeError, match=f"between 0 and the 3 .* got {count}"):
        open_last(net, depth_groups(net), count)


def test_all_can_be_frozen():
    net = frozen(count=0)
    assert trainable_parameters(net) == 0


def test_a_group_without_what_is_named():
    first = depth_groups(network())[0]
    assert without(first, ["0.weight", "1"]).parameters == ("0.bias",)
    assert without(first, ["1"]).modules == tuple(m for m in first.modules if m != "1")
    assert without(first, ["4"]) == first


def test_lazy_parameters_can_be_frozen_and_are_not_counted():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LazyLinear(2))
    groups = depth_groups(net)
    open_last(net, groups, 1)
    assert trainable_parameters(net) == 0
    net(torch.zeros(1, 4)).sum().backward()
    assert trainable_parameters(net) == 10
    assert net[2].weight.grad is not None
    assert net[0].weight.grad is None
