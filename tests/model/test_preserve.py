"""A training step leaves no trace inside ``preserved``."""

import random

import pytest
import torch
from torch import nn

from stablelightning.model.preserve import preserved


class Keeper(nn.Module):
    """Keeps counts, lists, tensors and buffers, and writes all of them when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(3))
        self.calls, self.log, self.sizes, self.names = 0, [1], {"a": 1}, {"x"}
        self.total = torch.zeros(2)

    def forward(self, x):
        self.calls += 1
        self.log.append(x)
        self.sizes["b"] = 2
        self.names.add("y")
        self.total += 1
        self.seen = self.seen + x.sum(0).detach()
        self.fresh = x
        with torch.no_grad():
            self.layer.weight.mul_(0.5)
        return self.norm(self.layer(x))


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_everything_is_put_back():
    model = Keeper()
    before, weight, seen = state_of(model), model.layer.weight, model.seen
    with preserved(model):
        model.eval()
        model.layer.bias.requires_grad_(False)
        model(torch.randn(5, 3)).sum().backward()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert model.layer.weight is weight
    assert model.seen is seen
    assert (model.calls, model.log, model.sizes, model.names) == (0, [1], {"a": 1}, {"x"})
    assert torch.equal(model.total, torch.zeros(2))
    assert not hasattr(model, "fresh")
    assert model.training
    assert model.norm.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_gradients_that_were_there_stay():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient, content = model.weight.grad, model.weight.grad.clone()
    with preserved(model):
        model(torch.ones(4, 2)).sum().backward()
        model.weight.grad.zero_()
        model.bias.grad = None
    assert model.weight.grad is gradient
    assert torch.equal(gradient, content)
    assert model.bias.grad is not None


def test_generators_go_on_as_if_nothing_had_been_drawn():
    with preserved(nn.Dropout()):
        torch.rand(3), random.random()
    first = torch.rand(3), random.random()
    torch.manual_seed(0), random.seed(0)
    assert torch.equal(first[0], torch.rand(3))
    assert first[1] == random.random()


def test_a_failing_step_is_undone_too():
    model = Keeper()
    before = state_of(model)

    def fail():
        model(torch.randn(5, 3))
        raise RuntimeError

    with pytest.raises(RuntimeError), preserved(model):
        fail()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_hook_that_writes_weights_is_undone():
    model = nn.Sequential(nn.Linear(2, 2))

    def overwrite(module, _inputs):
        module.weight.data.fill_(3.0)

    model[0].register_forward_pre_hook(overwrite)
    before = state_of(model)
    with preserved(model):
        model(torch.randn(5, 2))
        assert (model[0].weight == 3).all()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_weights_that_are_not_finite_are_kept_bit_by_bit():
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = torch.nan
    with preserved(model, moved=True):
        model.weight.data.fill_(1.0)
    assert torch.isnan(model.weight[0, 0])
    assert torch.isfinite(model.weight).sum() == 3
