"""Swapping over the zoo: afterwards the watched forward sees the new activation, there only."""

import pytest
import torch

from stablelightning.model.activation import swap_activations
from stablelightning.model.attribution import attribute
from tests.model.zoo.attribution import ZOO, Expected
from tests.model.zoo.healthy import HAND_MADE
from tests.model.zoo.patients import Case, made


def consumers(model, inputs) -> dict[str, tuple[str, str]]:
    """Of each layer: the name of what consumes it, and the module that runs in."""
    layers = attribute(model, inputs).layers
    return {layer.name: (layer.consumer.name, layer.consumer.module) for layer in layers}


def check(model, inputs) -> int:
    model.train()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    before = consumers(model, inputs)
    swapped = {s.path for s in swap_activations(model, "softplus", example=inputs).swapped}
    after = consumers(model, inputs)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    # A function kept in an attribute runs in its owner before, in a module of its own after.
    hidden = {name for name in before if {before[name][1], after[name][1]} & swapped}
    assert {name: after[name][0] for name in hidden} == dict.fromkeys(hidden, "softplus")
    others = before.keys() - hidden
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    return len(hidden)


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_networks_of_the_tables(case: Expected):
    check(*case.factory())


@pytest.mark.parametrize("case", HAND_MADE, ids=str)
def test_healthy_models(case: Case):
    patient = made(case)
    layers = check(patient.model, patient.batch[0])
    modules = [type(m).__name__ for m in patient.model.modules()]
    assert layers >= sum(name in ("ReLU", "GELU", "SELU", "ELU", "LeakyReLU") for name in modules)
