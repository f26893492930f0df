"""Inputs that a norm hides from the loss, and that poison its running statistics all the same."""

import math

import pytest
import torch
from torch import nn

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.callbacks.guard_readings import size_of
from stablelightning.errors import StableLightningWarning
from tests.callbacks.guarded import FEATURES, Guarded, batches, different, fit, outcome


class Normed(Guarded):
    """Its loss does not feel how large the inputs are."""

    def __init__(self, data):
        super().__init__(data)
        self.net.insert(0, nn.BatchNorm1d(FEATURES))

    def loss(self, batch):
        return (self.net(batch) - batch.sign().sum(1, keepdim=True)).square().mean()


def test_a_batch_of_enormous_inputs_is_as_if_it_had_not_been():
    good = batches(40)
    bad = [*good[:35], good[0] * 1e5, *good[35:]]
    guard = GuardTraining()
    with pytest.warns(StableLightningWarning, match="GuardTraining undid.*input-spike"):
        guarded = fit(Normed(bad), guard, max_epochs=1)
    assert different(outcome(fit(Normed(good), max_epochs=1)), outcome(guarded)) == []
    event = guard.events.events[0]
    assert (event["quantity"], event["cause"]) == ("input", "poisoned batch")
    assert event["value"] > 1e4


def test_the_running_statistics_of_an_unguarded_run_are_poisoned():
    good = batches(40)
    bad = [*good[:35], good[0] * 1e5, *good[35:]]
    unguarded = fit(Normed(bad), max_epochs=1).lightning_module
    assert unguarded.net[0].running_var.max() > 1e6


def test_infinite_inputs_that_a_model_expects_are_no_trouble():
    """Missing values are NaN, and the model knows it."""

    class Masks(Guarded):
        def loss(self, batch):
            return super().loss(batch.nan_to_num(0.0))

    data = batches(40)
    for batch in data[::3]:
        batch[0, 0] = math.nan
    guard = GuardTraining()
    fit(Masks(data), guard)
    assert guard.skipped == 0


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ({"a": torch.tensor([[-4.0]]), "b": [torch.tensor(2.0)]}, 4.0),
        (torch.tensor([1, 2]), None),
        ("words", None),
        (torch.zeros(0), None),
        (torch.tensor([[1.0, 2.0]], dtype=torch.float16), 2.0),
    ],
)
def test_size_of_any_batch(batch, size):
    found = size_of(batch)
    assert (None if found is None else float(found)) == size
