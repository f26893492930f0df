"""Where it may change in training which parameters are trained."""

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import nn

from stablelightning.callbacks.wrapping import forget_compiled, refuse_fixed, renew_wrapper
from stablelightning.errors import ModelError, RecipeError
from tests.callbacks.frozen import Deep, made


class Around(nn.Module):
    """A wrapper of somebody's own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def trainer(strategy: Any = "auto") -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, strategy=strategy, barebones=True)


@pytest.mark.parametrize("strategy", ["auto", DDPStrategy()])
def test_one_device_and_plain_ddp_may(strategy):
    refuse_fixed(trainer(strategy), made(), name="Plan")


def test_a_static_graph_may_not():
    with pytest.raises(RecipeError, match="static_graph"):
        refuse_fixed(trainer(DDPStrategy(static_graph=True)), made(), name="Plan")


def test_shards_may_not():
    sharded = trainer()
    sharded._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(RecipeError, match=r"Plan needs whole parameters .* got FSDPStrategy"):
        refuse_fixed(sharded, made(), name="Plan")


def test_a_compiled_module_may_not():
    model = made()
    model.compile(backend="eager")
    with pytest.raises(ModelError, match="Deep is compiled as a whole"):
        refuse_fixed(trainer(), model, name="Plan")


def test_what_is_not_wrapped_stays_so():
    one, model = trainer(), made()
    one.strategy.connect(model)
    renew_wrapper(one, model)
    assert one.strategy.model is model


def test_a_wrapper_of_somebodys_own_is_refused_in_words():
    one, model = trainer(SingleDeviceStrategy()), made()
    one.strategy.connect(model)
    one.strategy.model = Around(model)
    with pytest.raises(RecipeError, match="got SingleDeviceStrategy; use strategy='ddp'"):
        renew_wrapper(one, model)


@pytest.mark.parametrize("compiled", [True, False])
def test_code_is_forgotten_where_there_is_some(compiled, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append(1))
    model: Deep = made()
    if compiled:
        model.net = torch.compile(model.net, backend="eager")
    forget_compiled(model)
    assert len(calls) == compiled
