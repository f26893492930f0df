"""What callbacks see of an optimizer's gradients, and that it is computed once."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stablelightning.callbacks.gradients import gradients_of
from tests.callbacks.modules import quiet_trainer


class CountNorms(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "norm" in str(func)
        return func(*args, **(kwargs or {}))


def optimizer_with(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return torch.optim.SGD(parameters)


@pytest.fixture
def trainer():
    return quiet_trainer()


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_the_norm_is_that_of_one_long_vector(trainer, norm_type):
    gradients = [torch.randn(3, 4), torch.randn(5), torch.randn(())]
    norm = gradients_of(trainer, optimizer_with(*gradients)).norm(norm_type)
    together = torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(norm, torch.linalg.vector_norm(together, norm_type))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_may_differ_and_small_ones_do_not_overflow(trainer, dtype):
    gradients = [torch.full((100,), 300.0, dtype=dtype), torch.full((1,), 4.0)]
    norm = gradients_of(trainer, optimizer_with(*gradients)).norm()
    assert norm.item() == pytest.approx(math.sqrt(100 * 300.0**2 + 16), rel=1e-2)


def test_sparse_gradients_count_what_is_stored_once(trainer):
    sparse = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (4,))
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = sparse
    assert gradients_of(trainer, torch.optim.SGD([weight])).norm().item() == 3.0


def test_the_norm_is_computed_once_until_a_gradient_is_written(trainer):
    optimizer = optimizer_with(torch.ones(4), torch.ones(4, 4))
    with CountNorms() as counted:
        first = gradients_of(trainer, optimizer).norm()
        one = counted.count
        again = gradients_of(trainer, optimizer).norm()
        assert counted.count == one
        assert again is first
        optimizer.param_groups[0]["params"][0].grad.mul_(2)
        assert gradients_of(trainer, optimizer).norm().item() == pytest.approx(math.sqrt(32))
        assert counted.count > one


def test_gradients_of_the_next_step_are_others_though_they_lie_in_the_same_place(trainer):
    optimizer = optimizer_with(torch.ones(4))
    weight = optimizer.param_groups[0]["params"][0]
    for value in (1.0, 2.0, 3.0):
        weight.grad = None
        gc.collect()
        weight.grad = torch.full((4,), value)
        assert gradients_of(trainer, optimizer).norm().item() == 2 * value


def test_no_gradient_is_kept_alive(trainer):
    optimizer = optimizer_with(torch.ones(4))
    gradients_of(trainer, optimizer).norm()
    gradient = weakref.ref(optimizer.param_groups[0]["params"][0].grad)
    optimizer.zero_grad()
    assert gradient() is None


def test_types_and_layouts_may_be_mixed(trainer):
    sparse = torch.sparse_coo_tensor([[0]], [4.0], (4,), check_invariants=True)
    gradients = [torch.full((2,), 3.0, dtype=torch.float64), torch.ones(2), torch.ones(2).half()]
    norm = gradients_of(trainer, optimizer_with(*gradients)).norm()
    assert norm.item() == pytest.approx(math.sqrt(22))
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = sparse
    other = nn.Parameter(torch.zeros(5000, 3))
    other.grad = torch.ones(5000, 3)
    norm = gradients_of(trainer, torch.optim.SGD([other, weight])).norm()
    assert norm.item() == pytest.approx(math.sqrt(15016))


def test_without_gradients_the_norm_is_zero(trainer):
    optimizer = optimizer_with(torch.ones(4))
    optimizer.zero_grad()
    gradients = gradients_of(trainer, optimizer)
    assert gradients.is_empty
    assert gradients.norm().item() == 0.0


def test_the_scale_of_a_fused_optimizer_is_taken_out(trainer):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0]) * 1024
    optimizer = torch.optim.Adam([weight], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    trainer.precision_plugin.scaler = scaler
    gradients = gradients_of(trainer, optimizer)
    assert gradients.norm().item() == pytest.approx(5.0)
    assert gradients.scale.item() == 1024.0
    plain = torch.optim.Adam([weight])
    assert gradients_of(trainer, plain).scale is None
