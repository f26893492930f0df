"""Cure of residual branches that are too loud: a learned scale behind their last layer."""

from typing import Any

from torch import nn

from stablelightning.model.cures.patient import Patient
from stablelightning.model.cures.treatment import NotSafe, module_named
from stablelightning.nn.added import ADDED_SCALE, AddedScale


def plan_scales(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Find the last layers of residual branches without a norm, or of those that are named.

    Args:
        patient: the model.
        modules: dotted names of layers or of what holds them; none is every such branch.
        arguments: ``scale`` at first; one over the number of branches if it is not given.

    Raises:
        NotSafe: there is no such branch.
    """
    within = {role.name for role in patient.roles(modules)}
    names = patient.names
    ends: list[str] = []
    for branch in patient.attribution.branches:
        last = branch.last_layer
        usable = not branch.has_norm and within & set(branch.layers) and last not in ends
        if usable and last in names.values():
            module = patient.model.get_submodule(last)
            (*calls,) = patient.calls_of(module)
            if len(calls) == 1 and len(calls[0].outputs) == 1 and _has_no_scale(module):
                ends.append(last)
    if not ends:
        raise NotSafe("no residual branch without a norm or a scale ends in a layer of its own")
    return {"modules": ends, "scale": float(arguments.get("scale", 1 / len(ends)))}


def _has_no_scale(module: nn.Module) -> bool:
    return ADDED_SCALE not in module._modules


def perform_scales(model: nn.Module, plan: dict[str, Any]) -> None:
    """Put the planned scales behind the layers."""
    for name in plan["modules"]:
        AddedScale(plan["scale"]).behind(module_named(model, name))


def tell_scales(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    first, *others = plan["modules"]
    more = f" and {len(others)} more" if others else ""
    return (
        f"a learned scale, {plan['scale']:.2g} at first, behind {first}{more}; no weight was "
        "changed or renamed"
    )
