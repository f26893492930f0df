"""Whose hooks are taken off for a while, and whose stay."""

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from stablelightning.callbacks.steps import replace_method
from stablelightning.callbacks.unseen import unseen_by_callbacks


class Counts(L.Callback):
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_) -> None:
        self.calls += 1

    def count(self, *_) -> None:
        self.calls += 1


class Helper:
    def __init__(self) -> None:
        self.calls = 0

    def count(self, *_) -> None:
        self.calls += 1


def module_and_trainer(*callbacks):
    module = L.LightningModule()
    module.net = nn.Linear(2, 2)
    return module, L.Trainer(accelerator="cpu", barebones=True, callbacks=list(callbacks))


def put(callback, module, how: str):
    helper = Helper()
    if how == "bound":
        module.net.register_forward_hook(callback.count)
    elif how == "callable":
        module.net.register_forward_pre_hook(callback)
    elif how == "closure":
        module.net.register_forward_hook(lambda *_: callback.count())
    elif how == "partial":
        module.net.register_forward_hook(partial(Counts.count, callback))
    elif how == "handle":
        callback.handles = {"net": [module.net.register_forward_hook(helper.count)]}
    elif how == "helper":
        callback.helper = helper
        module.net.register_forward_hook(helper.count)
    elif how == "parameter":
        callback.handle = module.net.weight.register_hook(helper.count)
    return helper


@pytest.mark.parametrize(
    "how", ["bound", "callable", "closure", "partial", "handle", "helper", "parameter"]
)
def test_hooks_of_callbacks_are_off_and_on_again(how):
    callback = Counts()
    module, trainer = module_and_trainer(callback)
    helper = put(callback, module, how)

    def step():
        module.net(torch.ones(1, 2)).sum().backward()
        return callback.calls + helper.calls

    with unseen_by_callbacks(trainer, module):
        assert trainer.callbacks == []
        assert step() == 0
    assert callback in trainer.callbacks
    assert step() == 1


def test_a_models_own_hooks_stay_in_their_order():
    callback = Counts()
    module, trainer = module_and_trainer(callback)
    calls = []
    module.net.register_forward_hook(lambda *_: calls.append("own"))
    module.net.register_forward_hook(callback.count)
    module.net.register_forward_hook(lambda *_: calls.append("last"))
    order = list(module.net._forward_hooks)
    with unseen_by_callbacks(trainer, module):
        module.net(torch.ones(1, 2))
    assert calls == ["own", "last"]
    assert list(module.net._forward_hooks) == order


def test_numbers_that_a_callback_happens_to_hold_own_nothing():
    callback = Counts()
    callback.small = 1
    module, trainer = module_and_trainer(callback)
    one, calls = 1, []
    module.net.register_forward_hook(lambda *_: calls.append(one))
    with unseen_by_callbacks(trainer, module):
        module.net(torch.ones(1, 2))
    assert calls == [1]


def test_replaced_methods_are_the_modules_own_meanwhile():
    module, trainer = module_and_trainer()
    usual = module.forward
    undo = replace_method(module, "forward", lambda *_: "replaced")
    with unseen_by_callbacks(trainer, module):
        assert module.forward == usual
        assert "forward" not in vars(module)
    assert module.forward() == "replaced"
    undo()
    assert module.forward == usual


def test_all_is_back_after_a_failure():
    callback = Counts()
    module, trainer = module_and_trainer(callback)
    module.net.register_forward_hook(callback.count)
    with pytest.raises(RuntimeError), unseen_by_callbacks(trainer, module):
        raise RuntimeError
    module.net(torch.ones(1, 2))
    assert callback.calls == 1
    assert callback in trainer.callbacks
