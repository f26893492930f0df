"""Every cure is whole or nothing, keeps parameters and names, and can be repeated."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.errors import CheckpointError, DataError, ModelError
from stablelightning.model.cures import (
    CURES,
    apply_cures,
    recorded_treatments,
    repeat_treatments,
)
from stablelightning.model.cures.patient import Snapshot
from stablelightning.model.diagnose import diagnose
from stablelightning.nn.added import SkippingSequential
from tests.model.cures_cases import EXAMPLE, Blocks, Loop, Writes, finding, images, stack

PICTURES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def with_norms() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8),
        nn.BatchNorm1d(8), nn.SELU(), nn.Dropout(0.1), nn.Linear(8, 3),
    )  # fmt: skip
    net(EXAMPLE)
    return net


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(4)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


#: A model, an example of its inputs and a finding, for every structural cure and kind of model.
CASES = {
    "skips in a stack": (stack, EXAMPLE, finding("add-skips")),
    "skips in a conv stack": (images, PICTURES, finding("add-skips")),
    "skips around layers": (Loop, EXAMPLE, finding("add-skips")),
    "skips around blocks": (Blocks, EXAMPLE, finding("add-skips")),
    "norms in a stack": (stack, EXAMPLE, finding("insert-norm")),
    "norms in a conv stack": (images, PICTURES, finding("insert-norm", "2", "4")),
    "norms in a loop": (Loop, EXAMPLE, finding("insert-norm", "layers")),
    "void biases": (with_norms, EXAMPLE, finding("drop-bias")),
    "alpha dropout": (with_norms, EXAMPLE, finding("alpha-dropout", "7")),
    "no dropout": (with_norms, EXAMPLE, finding("drop-dropout", "2", dropout="1")),
    "other activation": (stack, EXAMPLE, finding("swap-activation", activation="gelu")),
    "learned scales": (Residual, EXAMPLE, finding("add-scale")),
}
every_case = pytest.mark.parametrize(("make", "example", "found"), CASES.values(), ids=CASES)


def test_the_cases_cover_every_cure():
    assert {found.cure for _, _, found in CASES.values()} == set(CURES)


# ---- what holds for all -------------------------------------------------------------------------


@every_case
def test_parameters_stay_the_same_objects_with_the_same_numbers(make, example, found):
    model = make()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    (treatment,) = apply_cures(model, [found], example)
    assert treatment.done, treatment.words
    for name, parameter in model.named_parameters():
        if name in before:
            assert parameter is before[name][0]
            assert torch.equal(parameter, before[name][1])
    gone = set(before) - {name for name, _ in model.named_parameters()}
    assert (gone == {"0.bias", "4.bias"}) if found.cure == "drop-bias" else not gone


@every_case
def test_a_cured_model_runs_and_learns(make, example, found):
    model = make()
    apply_cures(model, [found], example)
    model.train()
    output = model(example)
    assert output.shape == make()(example).shape
    output.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@every_case
def test_flags_buffers_and_generators_are_left_alone(make, example, found):
    model = make()
    model.train()
    list(model.modules())[1].eval()
    flags = [m.training for m in model.modules()]
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    torch.manual_seed(3)
    apply_cures(model, [found], example)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    names = dict(make().named_modules())
    assert [m.training for n, m in model.named_modules() if n in names] == flags
    if found.cure != "drop-bias":
        now = dict(model.named_buffers())
        assert all(torch.equal(now[name], buffer) for name, buffer in buffers.items())


@every_case
def test_a_treatment_can_be_repeated_before_a_checkpoint_is_loaded(make, example, found):
    treated, fresh = make(), make()
    apply_cures(treated, [found], example)
    with torch.no_grad():
        for parameter in treated.parameters():
            parameter.add_(0.1)
    plans = json.loads(json.dumps(recorded_treatments(treated)))
    assert repeat_treatments(fresh, plans) == 1
    fresh.load_state_dict(treated.state_dict())
    assert torch.equal(fresh.eval()(example), treated.eval()(example))
    assert repeat_treatments(fresh, plans) == 0
    assert recorded_treatments(fresh) == recorded_treatments(treated)


@every_case
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_treated_too(make, example, found, copied):
    model = make()
    apply_cures(model, [found], example)
    other = copied(model)
    assert torch.equal(other.eval()(example), model.eval()(example))
    assert recorded_treatments(other) == recorded_treatments(model)


@every_case
def test_a_cure_that_fails_on_the_way_leaves_nothing(make, example, found, monkeypatch):
    model, expected = make().eval(), make().eval()
    before = {name: p for name, p in model.named_parameters()}
    cure = CURES[found.cure]

    def perform(model, plan):
        cure.perform(model, plan)
        raise RuntimeError("broken on purpose")

    monkeypatch.setitem(CURES, found.cure, type(cure)(cure.plan, perform, cure.tell))
    (treatment,) = apply_cures(model, [found], example)
    assert not treatment.done
    assert "broken on purpose" in treatment.words
    assert recorded_treatments(model) == []
    assert repr(model) == repr(expected)
    assert torch.equal(model(example), expected(example))
    assert all(before[name] is p for name, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())


@every_case
def test_an_example_that_does_not_fit_changes_nothing(make, example, found):
    model = make()
    with pytest.raises(DataError, match="must fit the forward"):
        apply_cures(model, [found], torch.randn(2, 5))
    assert repr(model) == repr(make())


# ---- skips --------------------------------------------------------------------------------------


def test_two_layers_make_a_branch_and_the_head_none():
    net = stack(depth=7)
    (treatment,) = apply_cures(net, [finding("add-skips")], EXAMPLE)
    assert isinstance(net, SkippingSequential)
    assert net.spans == (("0", "3"), ("4", "7"), ("8", "11"), ("12", "13"))
    assert treatment.modules == ("",)
    assert "4 residual branches" in treatment.words


def test_layers_that_change_the_shape_are_left_between():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    apply_cures(net, [finding("add-skips")], EXAMPLE)
    assert net.spans == (("2", "3"), ("6", "9"))


def test_what_follows_the_last_layer_and_changes_the_shape_is_left_out():
    net = images(depth=2)
    apply_cures(net, [finding("add-skips")], PICTURES)
    assert net.spans == (("2", "5"),)


def test_the_scale_at_first_keeps_the_signal():
    deep = stack(depth=40, width=8)
    for module in deep:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    apply_cures(deep, [finding("add-skips")], EXAMPLE)
    with torch.no_grad():
        features = _features(deep)
    assert 0.2 < features.std() / EXAMPLE.std() < 5


def _features(net):
    seen = []
    handle = net[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(EXAMPLE)
    handle.remove()
    return seen[0]


def test_a_functional_relu_takes_skips_around_its_layers():
    model = Loop(F.relu)
    (treatment,) = apply_cures(model, [finding("add-skips")], EXAMPLE)
    assert treatment.modules == tuple(f"layers.{i}" for i in range(6))


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.selu, torch.sigmoid])
def test_a_functional_squash_does_not(activation):
    model = Loop(activation)
    (treatment,) = apply_cures(model, [finding("add-skips")], EXAMPLE)
    assert not treatment.done
    assert "ScaledResidual" in treatment.words


def test_modules_that_write_into_their_input_take_none():
    (treatment,) = apply_cures(Writes(), [finding("add-skips", "block")], EXAMPLE)
    assert not treatment.done


def test_a_model_with_skips_is_left():
    (treatment,) = apply_cures(Residual(), [finding("add-skips")], EXAMPLE)
    assert not treatment.done
    assert "skip around it already" in treatment.words


def test_shared_layers_take_none():
    layer = nn.Linear(8, 8)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 3))
    (treatment,) = apply_cures(net, [finding("add-skips")], EXAMPLE)
    assert not treatment.done
    assert type(net) is nn.Sequential


def test_a_shared_activation_is_no_hindrance():
    torch.manual_seed(0)
    bend = nn.ReLU()
    net = nn.Sequential(nn.Linear(8, 8), bend, nn.Linear(8, 8), bend, nn.Linear(8, 3))
    apply_cures(net, [finding("add-skips")], EXAMPLE)
    assert net.spans == (("0", "3"),)


def test_only_the_named_container_is_changed():
    model = nn.Sequential(stack(4)[:-1], stack(4))
    apply_cures(model, [finding("add-skips", "0")], EXAMPLE)
    assert type(model[0]) is SkippingSequential
    assert type(model[1]) is nn.Sequential


# ---- norms and biases ---------------------------------------------------------------------------


def test_the_norm_fits_the_layer():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.tokens = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5)
            self.rows, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            out, _ = self.rnn(x)
            return self.head(self.rows(self.tokens(out).relu().mean(1)).relu())

    model = Mixed()
    (treatment,) = apply_cures(model, [finding("insert-norm")], torch.randn(4, 7, 8))
    kinds = [entry["norm"] for entry in treatment.plan["places"]]
    assert kinds == ["LayerNorm", "LayerNorm", "BatchNorm1d"]
    assert not hasattr(model.head, "added_norm")


def test_one_row_takes_no_batch_norm():
    (treatment,) = apply_cures(stack(2), [finding("insert-norm")], EXAMPLE[:1])
    assert {entry["norm"] for entry in treatment.plan["places"]} == {"LayerNorm"}
    (treatment,) = apply_cures(images(2), [finding("insert-norm")], PICTURES[:1])
    assert {entry["norm"] for entry in treatment.plan["places"]} == {"GroupNorm"}


def test_a_layer_with_a_norm_takes_no_second():
    (treatment,) = apply_cures(with_norms(), [finding("insert-norm", "0", "4")], EXAMPLE)
    assert not treatment.done
    assert "a norm follows already" in treatment.words


def test_void_biases_go_and_outputs_stay():
    model = with_norms()
    with torch.no_grad():
        model[4].bias.fill_(3.0)
        model(EXAMPLE)
    model.eval()
    before = model(EXAMPLE)
    (treatment,) = apply_cures(model, [finding("drop-bias")], EXAMPLE)
    assert [entry["module"] for entry in treatment.plan["places"]] == ["0", "4"]
    assert model[4].bias is None
    assert model[8].bias is not None
    torch.testing.assert_close(model(EXAMPLE), before)


def test_a_bias_that_others_read_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x):
            y = self.layer(x)
            return self.head(self.norm(y) + y)

    (treatment,) = apply_cures(Both(), [finding("drop-bias")], EXAMPLE)
    assert not treatment.done


def test_trouble_that_was_there_is_no_reason_to_leave_a_model():
    """One row is too few for the batch norm that it has; the skips are not to blame."""
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), *stack(4))
    (treatment,) = apply_cures(net, [finding("add-skips")], EXAMPLE[:1])
    assert treatment.done


# ---- other tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_added_has_the_models_dtype(dtype):
    for make in (stack, Loop):
        model = make().to(dtype)
        treatments = apply_cures(
            model, [finding("insert-norm"), finding("add-skips")], EXAMPLE.to(dtype)
        )
        assert all(t.done for t in treatments)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model(EXAMPLE.to(dtype)).dtype == dtype


def test_a_model_without_memory_takes_a_structure():
    model = stack().to("meta")
    (treatment,) = apply_cures(model, [finding("add-skips")], EXAMPLE.to("meta"))
    assert treatment.done
    assert model.skip_scale_0.is_meta


def test_lazy_layers_are_given_their_shape_first():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    (treatment,) = apply_cures(model, [finding("add-skips")], EXAMPLE)
    assert treatment.done
    assert model(EXAMPLE).shape == (12, 3)


def test_frozen_weights_stay_frozen():
    model = stack()
    model[0].requires_grad_(False)
    apply_cures(model, [finding("add-skips"), finding("insert-norm")], EXAMPLE)
    assert not model[0].weight.requires_grad
    assert model.skip_scale_0.requires_grad


# ---- by a diagnosis -----------------------------------------------------------------------------


def deep(activation: type[nn.Module] = nn.ReLU, depth: int = 30) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(16, 16), activation())]
    return nn.Sequential(*layers, nn.Linear(16, 3))


def batch(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 16, generator=generator)
    return inputs, torch.randint(3, (rows,), generator=generator)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SELU])
def test_apply_leaves_no_error_in_a_deep_stack(activation):
    sick = diagnose(deep(activation), batch())
    assert sick.worst == "error"
    cured = sick.apply()
    assert cured.worst != "error", str(cured)
    assert cured.before is sick
    assert any(t.done for t in cured.treatments)
    assert cured.to_dict()["treatments"][0]["cure"] == cured.treatments[0].cure


def test_apply_goes_on_behind_what_overflowed():
    """Nothing can be seen behind the first layer that is not finite, before it is cured."""
    net = deep(depth=40)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=100)
    sick = diagnose(net, batch())
    assert "non-finite" in [f.code for f in sick.findings]
    assert sick.apply().worst != "error"
    assert net.spans[0] == ("0", "3")
    assert net.spans[-1] == ("76", "79")


def test_a_cured_net_learns_what_it_could_not():
    inputs, target = batch(256)
    target = (inputs[:, 0] > 0).long()
    right = []
    for cured in (False, True):
        net = deep(depth=40)
        if cured:
            diagnose(net, (inputs, target)).apply()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), target).backward()
            optimizer.step()
        right.append((net(inputs).argmax(1) == target).float().mean().item())
    assert right[0] < 0.7
    assert right[1] > 0.95


# ---- activations --------------------------------------------------------------------------------


def test_only_the_activations_behind_the_named_layers_are_swapped():
    net = stack(4, activation=nn.Sigmoid)
    (treatment,) = apply_cures(
        net, [finding("swap-activation", "0", "4", activation="tanh")], EXAMPLE
    )
    assert [type(m) for m in net if not isinstance(m, nn.Linear)] == [
        nn.Tanh,
        nn.Sigmoid,
        nn.Tanh,
        nn.Sigmoid,
    ]
    assert treatment.words.startswith("1 and 1 more activations are now tanh")


def test_an_activation_that_does_not_exist_changes_nothing():
    (treatment,) = apply_cures(stack(2), [finding("swap-activation", activation="rellu")], EXAMPLE)
    assert not treatment.done
    assert "relu" in treatment.words


# ---- several, and none --------------------------------------------------------------------------


def test_several_cures_come_in_their_order_and_are_repeated_together():
    findings = [
        finding("add-skips"),
        finding("drop-bias"),
        finding("insert-norm"),
        finding("swap-activation", activation="gelu"),
    ]
    model, fresh = stack(), stack()
    treatments = apply_cures(model, findings, EXAMPLE)
    assert [t.cure for t in treatments] == [
        "swap-activation",
        "insert-norm",
        "drop-bias",
        "add-skips",
    ]
    assert all(t.done for t in treatments)
    assert repeat_treatments(fresh, recorded_treatments(model)) == 4
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(EXAMPLE), model.eval()(EXAMPLE))


def test_findings_that_ask_for_one_cure_are_one():
    treatments = apply_cures(
        stack(), [finding("insert-norm", "0"), finding("insert-norm", "2", "0")], EXAMPLE
    )
    assert [t.modules for t in treatments] == [("0", "2")]


def test_nothing_to_do():
    model = stack()
    assert apply_cures(model, [finding(None)], "not even looked at") == []  # type: ignore[arg-type]
    (treatment,) = apply_cures(model, [finding("pray")], EXAMPLE)
    assert not treatment.done
    assert "no such cure" in treatment.words


def test_a_second_application_finds_nothing_left():
    model = stack()
    apply_cures(model, [finding("add-skips"), finding("insert-norm")], EXAMPLE)
    again = apply_cures(model, [finding("add-skips"), finding("insert-norm")], EXAMPLE)
    assert [t.done for t in again] == [False, False]
    assert len(recorded_treatments(model)) == 2


def test_compiled_models_are_refused():
    with pytest.raises(ModelError, match="before compiling"):
        apply_cures(torch.compile(stack()), [finding("add-skips")], EXAMPLE)
    with pytest.raises(ModelError, match=r"torch\.nn\.Module"):
        apply_cures(lambda x: x, [finding("add-skips")], EXAMPLE)


def test_plans_of_another_model_change_nothing():
    treated = stack(8)
    apply_cures(treated, [finding("insert-norm"), finding("add-skips")], EXAMPLE)
    other = stack(4)
    with pytest.raises(CheckpointError, match="trained with"):
        repeat_treatments(other, recorded_treatments(treated))
    assert repr(other) == repr(stack(4))
    assert recorded_treatments(other) == []


def test_a_model_that_was_treated_otherwise_is_refused():
    one, two = stack(), stack()
    apply_cures(one, [finding("add-skips")], EXAMPLE)
    apply_cures(two, [finding("insert-norm")], EXAMPLE)
    with pytest.raises(CheckpointError, match="in another way"):
        repeat_treatments(two, recorded_treatments(one))


def test_a_snapshot_brings_everything_back():
    model = with_norms()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = Snapshot(model)
    model[4].register_parameter("bias", None)
    model.append(nn.ReLU())
    model[3].register_forward_hook(lambda *_: None)
    model.extra = 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    before.restore()
    assert not hasattr(model, "extra")
    assert repr(model) == repr(with_norms())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
