"""Initialization given what users give by mistake, and models that do not keep still."""

import copy
import random
from collections import OrderedDict

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.errors import DataError, ModelError, RecipeError
from stablelightning.model.initialize import initialize
from tests.model.zoo.healthy import HAND_MADE
from tests.model.zoo.patients import Case, made

X, Y = torch.randn(64, 24), torch.randint(3, (64,))


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


class Own(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


# ---- refused in words, nothing written -----------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(X[:, :5], id="width"),
        pytest.param(X.double(), id="dtype"),
        pytest.param(X.long(), id="integers"),
        pytest.param(X.to("meta"), id="device"),
        pytest.param(X.numpy(), id="array"),
        pytest.param(None, id="nothing"),
        pytest.param("text", id="text"),
        pytest.param({"no_such_argument": X}, id="keyword"),
        pytest.param((), id="no arguments"),
    ],
)
def test_an_example_that_does_not_fit_is_a_data_error(example):
    model = net()
    before = weights(model)
    with pytest.raises(DataError):
        initialize(model, example)
    assert not changed(model, before)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(nn.ReLU()), id="no parameters"),
        pytest.param(lambda x: x, id="a function"),
        pytest.param(torch.jit.script(nn.Linear(24, 3)), id="scripted"),
    ],
)
def test_what_is_no_eager_model_is_a_model_error(model):
    with pytest.raises(ModelError):
        initialize(model, X)


@pytest.mark.parametrize(("scheme", "near"), [("hee", "he"), ("ortogonal", "orthogonal")])
def test_an_unknown_scheme_names_the_nearest(scheme, near):
    model = net()
    before = weights(model)
    with pytest.raises(RecipeError, match=near):
        initialize(model, X, scheme=scheme)
    assert not changed(model, before)


def test_an_unknown_module_to_overwrite_names_the_nearest():
    model = nn.Sequential(OrderedDict(encoder=nn.Linear(24, 3)))
    with pytest.raises(RecipeError, match="encoder"):
        initialize(model, X, overwrite=["encodr"])


def test_an_interrupt_goes_through_and_leaves_no_hooks():
    def interrupted(_self, _x):
        raise KeyboardInterrupt

    model = Own(interrupted, a=nn.Linear(24, 3))
    with pytest.raises(KeyboardInterrupt):
        initialize(model, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- examples as users have them -----------------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [
        pytest.param((X, Y), id="with the target"),
        pytest.param([X, Y], id="as a list"),
        pytest.param({"input": X}, id="keyword"),
        pytest.param(X[:1], id="one row"),
        pytest.param(X[:0], id="no row"),
        pytest.param(torch.zeros(4, 24), id="zeros"),
        pytest.param(torch.full((4, 24), float("nan")), id="not a number"),
        pytest.param(1e6 * X, id="large"),
    ],
)
def test_the_weights_do_not_depend_on_the_example(example):
    model, other = net(), net()
    other.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    initialize(model, X)
    torch.manual_seed(5)
    initialize(other, example)
    assert not changed(model, weights(other))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_whatever_it_is_called_in(context):
    model = net()
    before = weights(model)
    with context():
        report = initialize(model, X)
    assert changed(model, before) == set(report.changed)
    assert len(report.changed) == 6
    F.cross_entropy(model(X), Y).backward()  # no inference tensors among the parameters
    assert all(p.requires_grad and p.is_leaf and p.grad is not None for p in model.parameters())


# ---- models that do not keep still ---------------------------------------------------------------


class Remembers(nn.Module):
    """Counts its calls, keeps what it saw, moves a buffer."""

    def __init__(self):
        super().__init__()
        self.net, self.calls, self.kept = net(), 0, []
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.kept.append(x)
        self.seen += 1
        return self.net(x)


def test_side_effects_are_undone_and_the_layers_initialized():
    model = Remembers()
    report = initialize(model, X)
    assert len(report.changed) == 6
    assert model.calls == 0
    assert model.kept == []
    assert model.seen == 0


def test_random_control_flow_is_said_and_the_rest_initialized():
    def either(self, x):
        return self.c(F.relu(self.a(x)) if random.random() < 2 else torch.tanh(self.b(x)))

    model = Own(either, **{n: nn.Linear(24, 24) for n in "abc"})
    before, state = weights(model), random.getstate()
    report = initialize(model, X)
    assert random.getstate() == state
    assert {"a.weight", "c.weight"} <= changed(model, before)
    told = " ".join([*report.notes, *(r.why for r in report.rows if r.name == "b")])
    assert "random" in " ".join(report.notes)
    assert "b" in told


def test_hooks_of_the_user_stay():
    model = net()
    model[0].register_forward_hook(lambda _m, _i, o: o)
    model[2].register_forward_pre_hook(lambda _m, i: i)
    model[0].weight.register_hook(lambda g: g)
    initialize(model, X)
    assert len(model[0]._forward_hooks) == len(model[2]._forward_pre_hooks) == 1
    assert len(model[0].weight._backward_hooks) == 1


def test_the_same_parameters_are_there_afterwards():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    identities = [id(p) for p in model.parameters()]
    initialize(model, X)
    assert [id(p) for p in model.parameters()] == identities
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == identities


class StepOnly(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, _index):
        inputs, target = batch
        loss = F.cross_entropy(self.net(inputs), target)
        self.log("loss", loss)
        return loss


def test_a_lightning_module_with_a_training_step_only():
    """It has no forward to watch: its step is what training runs."""
    module = StepOnly()
    before = weights(module)
    try:
        report = initialize(module, (X, Y))
    except (DataError, ModelError) as error:
        assert "forward" in str(error)  # noqa: PT017
        assert not changed(module, before)
    else:
        assert len(report.changed) == 6


# ---- what must be left ---------------------------------------------------------------------------


def test_frozen_layers_are_left_and_reported():
    model = net()
    model[2].requires_grad_(False)
    before = weights(model)
    report = initialize(model, X)
    assert not {"2.weight", "2.bias"} & changed(model, before)
    assert "frozen" in report["2"].why


@pytest.mark.parametrize(
    "norm",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old_spectral_norm"],
)
def test_parametrized_layers_are_left_and_reported(norm):
    model = net()
    norm(model[2])
    before = weights(model)
    report = initialize(model, X)
    assert not {
        name for name in changed(model, before) if name.startswith("2.") and "weight" in name
    }
    assert {"0.weight", "4.weight"} <= changed(model, before)
    assert any(row.name == "2" and not row.changed and row.why for row in report.rows)


def test_tied_weights_stay_tied_and_are_left():
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 3))
    model[2].weight = model[0].weight
    before = weights(model)
    report = initialize(model, X)
    assert model[2].weight is model[0].weight
    assert "0.weight" not in changed(model, before)
    assert "3.weight" in changed(model, before)
    assert report["0"].why


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_initialized(dtype):
    model = net().to(dtype)
    before = weights(model)
    report = initialize(model, X.to(dtype))
    assert len(changed(model, before)) == len(report.changed) == 6
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())


def test_complex_weights_are_left():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 24, dtype=torch.complex64))
            self.head = nn.Linear(24, 3)

        def forward(self, x):
            return self.head((x.to(torch.complex64) @ self.weight).abs())

    model = Spectral()
    before = weights(model)
    initialize(model, X)
    assert "weight" not in changed(model, before)


def test_a_quantized_model_is_left():
    model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(ModelError):
        initialize(model, X)


def test_a_compiled_model_is_initialized_as_the_eager_one():
    model = net()
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    initialize(model, X)
    torch.manual_seed(1)
    initialize(torch.compile(other, backend="eager"), X)
    assert not changed(model, weights(other))


# ---- over the zoo --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HAND_MADE, ids=str)
def test_every_healthy_model_is_still_itself(case: Case):
    patient = made(case)
    model = patient.model.train()
    before, flags = weights(model), [m.training for m in model.modules()]
    torch.manual_seed(1)  # made() starts from 0: the same numbers again would hide a change
    report = initialize(model, patient.batch[0])
    assert [m.training for m in model.modules()] == flags
    assert changed(model, before) <= set(report.changed)  # so that no buffer is
    same = set(report.changed) - changed(model, before)
    assert not any(model.get_parameter(name).any() for name in same)  # biases that were zero
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert str(report)


@pytest.mark.parametrize("case", HAND_MADE, ids=str)
def test_overwriting_keeps_the_loss_in_bounds(case: Case):
    patient = made(case)
    inputs, target = patient.batch
    loss = patient.loss or (F.mse_loss if target.is_floating_point() else F.cross_entropy)

    def value() -> float:
        output = patient.model(inputs)
        if patient.loss is None and not isinstance(output, torch.Tensor):
            return 0.0  # a distribution
        return loss(output, target).item()

    patient.model.train()
    before = value()
    torch.manual_seed(1)
    initialize(patient.model, inputs, overwrite=True)
    # Glorot gives few outputs a variance of two and more, which squares and exponentials show.
    assert value() < 10 * (before + 1)


@pytest.mark.parametrize("case", HAND_MADE[::4], ids=str)
def test_a_seed_repeats_it(case: Case):
    first, second = made(case), made(case)
    for patient in (first, second):
        torch.manual_seed(3)
        initialize(patient.model, patient.batch[0], overwrite=True)
    assert not changed(first.model, weights(second.model))
