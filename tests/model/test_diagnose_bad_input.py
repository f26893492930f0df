"""The doctor given what users give by mistake, and models that do not keep still."""

import random

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from stablelightning.errors import DataError, ModelError, StableLightningError
from stablelightning.model.diagnose import diagnose

X, Y = torch.randn(64, 8), torch.randint(3, (64,))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


class Own(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class StepOnly(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, _index):
        inputs, target = batch
        loss = F.cross_entropy(self.net(inputs), target)
        self.log("loss", loss)
        return loss


class Logger(StepOnly):
    def training_step(self, batch, index):
        self.logger.log_metrics({"a": 1.0})
        return super().training_step(batch, index)


class ReturnsNothing(StepOnly):
    def training_step(self, batch, index):
        return None


class Remembers(StepOnly):
    """Counts its steps, keeps a history and moves a buffer."""

    def __init__(self):
        super().__init__()
        self.steps, self.history = 0, []
        self.register_buffer("seen", torch.zeros(1))

    def training_step(self, batch, index):
        self.steps += 1
        self.history.append(batch)
        self.seen += 1
        return super().training_step(batch, index)


# ---- refused in words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param((X[:, :5], Y), id="width"),
        pytest.param((X.double(), Y), id="dtype"),
        pytest.param((X, Y[:5]), id="rows of the target"),
        pytest.param((X, Y + 5), id="class out of range"),
        pytest.param((X[:0], Y[:0]), id="empty"),
        pytest.param((X.to("meta"), Y), id="device"),
        pytest.param(None, id="nothing"),
        pytest.param("text", id="text"),
        pytest.param((X.numpy(), Y.numpy()), id="arrays"),
        pytest.param(DataLoader(list(zip(X, Y, strict=True)), 16), id="loader"),
    ],
)
def test_a_batch_that_does_not_fit_is_a_data_error(batch):
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError):
        diagnose(model, batch)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(nn.ReLU()), id="no parameters"),
        pytest.param(lambda x: x, id="a function"),
        pytest.param(nn.Linear(8, 3, device="meta"), id="meta"),
        pytest.param(torch.jit.script(nn.Linear(8, 3)), id="scripted"),
        pytest.param(Own(lambda s, x: s.a(x).relu_().mul_(2), a=nn.Linear(8, 3)), id="backward"),
    ],
)
def test_a_model_that_cannot_be_examined_is_a_model_error(model):
    with pytest.raises(ModelError):
        diagnose(model, (X, Y))


@pytest.mark.parametrize("module", [Logger, ReturnsNothing])
def test_a_step_that_cannot_run_says_why(module):
    with pytest.raises(StableLightningError, match="training_step"):
        diagnose(module(), (X, Y))


@pytest.mark.parametrize("loss", [lambda o, t: o.detach().sum(), lambda o, t: 1.0])
def test_a_loss_without_a_graph_is_not_passed_over(loss):
    try:
        diagnosis = diagnose(net(), (X, Y), loss)
    except DataError:
        return
    assert [f for f in diagnosis.findings if f.severity == "error"]


def test_an_interrupt_goes_through_and_leaves_no_hooks():
    def interrupted(_self, _x):
        raise KeyboardInterrupt

    model = Own(interrupted, a=nn.Linear(8, 3))
    with pytest.raises(KeyboardInterrupt):
        diagnose(model, (X, Y))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- taken as it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param([X, Y], id="list"),
        pytest.param({"input": X, "target": Y}, id="dict"),
        pytest.param((X[:1], Y[:1]), id="one row"),
        pytest.param((X[:2], Y[:2]), id="two rows"),
        pytest.param((X, torch.randn(64, 3)), id="regression"),
        pytest.param(X, id="inputs alone"),
    ],
)
def test_batches_of_many_kinds(batch):
    diagnosis = diagnose(net(), batch)
    assert len(diagnosis.layers) == 2
    assert not [f for f in diagnosis.findings if f.severity != "info"]


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda s, x: {"logits": s.net(x), "extra": 1}, id="dict"),
        pytest.param(lambda s, x: (s.net(x), None), id="tuple"),
        pytest.param(lambda s, x: checkpoint(s.net, x, use_reentrant=False), id="checkpoint"),
        pytest.param(lambda s, x: s.net(x.clone()), id="tensor"),
    ],
)
def test_outputs_of_many_kinds(forward):
    diagnosis = diagnose(Own(forward, net=net()), (X, Y))
    assert [layer.name for layer in diagnosis.layers] == ["net.0", "net.2"]
    assert all(layer.gradient_rms > 0 for layer in diagnosis.layers)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_whatever_it_is_called_in(context):
    model = net()
    with context():
        diagnosis = diagnose(model, (X, Y))
    assert all(layer.gradient_rms > 0 for layer in diagnosis.layers)


def test_a_batch_made_in_inference_mode():
    with torch.inference_mode():
        inputs = torch.randn(64, 8)
    assert all(layer.gradient_rms > 0 for layer in diagnose(net(), (inputs, Y)).layers)


def test_a_compiled_model():
    diagnosis = diagnose(torch.compile(net(), backend="eager"), (X, Y))
    assert len(diagnosis.layers) == 2


def test_a_scripted_part():
    model = nn.Sequential(torch.jit.script(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))
    assert "2" in [layer.name for layer in diagnose(model, (X, Y)).layers]


def test_complex_weights():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex64) @ self.weight).abs()

    assert diagnose(Spectral(), (X, Y)).loss > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    diagnosis = diagnose(net().to(dtype), (X.to(dtype), Y))
    assert not [f for f in diagnosis.findings if f.severity == "error"]


def test_frozen_weights_are_not_blamed():
    model = net()
    nn.init.zeros_(model[0].weight)  # constant, and meant so: it is not trained
    model[0].requires_grad_(False)
    blamed = {f.module for f in diagnose(model, (X, Y)).findings if f.code == "symmetric-weights"}
    assert "0" not in blamed


# ---- models that do not keep still ---------------------------------------------------------------


def test_a_lightning_module_with_a_training_step_only():
    module = Remembers()
    diagnosis = diagnose(module, (X, Y))
    assert [layer.name for layer in diagnosis.layers] == ["net.0", "net.2"]
    assert module.steps == 0
    assert module.history == []
    assert module.seen == 0
    assert module._trainer is None


def test_hooks_of_the_user_run_and_stay():
    calls: list[str] = []
    model = net()
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].weight.register_hook(lambda gradient: gradient * 2)
    diagnose(model, (X, Y))
    assert {"forward", "backward"} <= set(calls)
    assert len(model[0]._forward_hooks) == 1
    assert len(model[2]._backward_hooks) == 1
    assert len(model[0].weight._backward_hooks) == 1


def test_gradients_that_were_there_stay():
    model = net()
    F.cross_entropy(model(X), Y).backward()
    before = [p.grad.clone() for p in model.parameters()]
    diagnose(model, (X, Y))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_random_control_flow_is_said():
    def either(self, x):
        return self.c(F.relu(self.a(x)) if random.random() < 0.5 else torch.tanh(self.b(x)))

    parts = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    state = random.getstate()
    diagnosis = diagnose(Own(either, **parts), (X, Y))
    assert random.getstate() == state
    assert any("random" in note for note in diagnosis.notes)


def test_an_optimizer_of_another_model_is_not_called_uncopiable():
    other = torch.optim.SGD(net().parameters(), 0.1)
    diagnosis = diagnose(net(), (X, Y), optimizer=other)
    assert not any("cannot be copied" in note for note in diagnosis.notes)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 1e-3),
        lambda p: torch.optim.RMSprop(p, 1e-3),
        lambda p: torch.optim.LBFGS(p),
    ],
    ids=["sgd", "adamw", "rmsprop", "lbfgs"],
)
def test_the_optimizer_is_not_touched(make):
    model = net()
    optimizer = make(model.parameters())
    before = [p.clone() for p in model.parameters()]
    diagnose(model, (X, Y), optimizer=optimizer)
    assert not optimizer.state
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_diagnosis_is_repeatable():
    model, torch_state = net(), torch.get_rng_state()
    first, second = (repr(diagnose(model, (X, Y)).to_dict()) for _ in range(2))  # NaN in places
    assert first == second
    assert torch.equal(torch.get_rng_state(), torch_state)
