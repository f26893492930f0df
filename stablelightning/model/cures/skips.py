"""Cure of a depth without skips: runs of layers that keep their shape become residual branches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stablelightning.model.consumers import Consumer
from stablelightning.model.cures.patient import Patient
from stablelightning.model.cures.treatment import NotSafe, module_named
from stablelightning.model.structure import weight_layers
from stablelightning.model.trace import Call
from stablelightning.nn.added import AddedSkip, SkippingSequential

#: Weight layers of one branch. One alone adds a bend of its own at every step; two are what
#: residual networks have.
_LAYERS_PER_BRANCH = 2


def plan_skips(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Find the runs, in the named modules or anywhere.

    Args:
        patient: the model.
        modules: dotted names of containers or layers; none is the whole model. A container that
            holds one of the layers is changed as a whole: half a stack with skips is no help.
        arguments: ``scale``, of every branch at first; one over their number if it is not given:
            a stream that is only positive then grows at most e-fold, and no branch starts without
            a gradient.

    Raises:
        NotSafe: there is none.
    """
    wanted = {role.module for role in patient.roles(modules)} or {
        role.module for role in patient.attribution.layers
    }
    plain = {
        role.module
        for role in patient.attribution.layers
        if role.branch is None and role.uses == 1 and not role.is_output
    }
    containers: list[dict[str, Any]] = []
    taken: set[nn.Module] = set()
    for name, container in patient.model.named_modules():
        if type(container) is nn.Sequential:
            spans, layers = _spans(patient, container, plain - taken)
            if spans and layers & wanted:
                containers.append({"module": name, "spans": spans})
                taken |= layers
    singles = [
        name
        for name, module in patient.model.named_modules()
        if name and _takes_a_skip(patient, module, wanted & plain, taken)
    ]
    if not containers and not singles:
        raise NotSafe(_why_none(patient, wanted & plain))
    branches = sum(len(entry["spans"]) for entry in containers) + len(singles)
    scale = float(arguments.get("scale", 1 / branches))
    return {"containers": containers, "modules": singles, "scale": scale}


def perform_skips(model: nn.Module, plan: dict[str, Any]) -> None:
    """Make the planned runs residual branches."""
    for entry in plan["containers"]:
        container = module_named(model, entry["module"])
        assert isinstance(container, nn.Sequential)
        spans = [(first, last) for first, last in entry["spans"]]
        SkippingSequential.converted(container, spans, scale=plan["scale"])
    for name in plan["modules"]:
        AddedSkip(plan["scale"]).around(module_named(model, name))


def tell_skips(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    told = [
        f"{len(entry['spans'])} residual branches in {entry['module'] or 'the model'}"
        for entry in plan["containers"]
    ]
    if plan["modules"]:
        first, *others = plan["modules"]
        more = f" and {len(others)} more" if others else ""
        told.append(f"a skip around {first}{more}")
    return (
        f"{', '.join(told)}: x + scale * branch(x), where each scale is learned and "
        f"{plan['scale']:.2g} at first; no weight was changed or renamed"
    )


def _why_none(patient: Patient, usable: set[nn.Module]) -> str:
    if not usable:
        return "every layer has a skip around it already, is used several times, or is the output"
    return (
        "no run of layers keeps its shape where one module follows another for certain; "
        "write the skips into the forward, or use stablelightning.nn.ScaledResidual"
    )


# ---- in a Sequential ----------------------------------------------------------------------------


def _spans(
    patient: Patient, container: nn.Sequential, usable: set[nn.Module]
) -> tuple[list[list[str]], set[nn.Module]]:
    """First and last child of each branch, and the weight layers in all of them."""
    calls = _calls_in_order(patient, container)
    if calls is None:
        return [], set()
    spans: list[list[str]] = []
    covered: set[nn.Module] = set()
    open_span: list[list[tuple[str, Call]]] = []

    def close() -> None:
        if open_span:
            spans.append([open_span[0][0][0], open_span[-1][-1][0]])
            for unit in open_span:
                covered.update(_layers_of(unit))
            open_span.clear()

    for whole in _units(calls):
        unit = _part_that_keeps_shape(whole)
        layers = _layers_of(unit)
        if not layers or not set(layers) <= usable or len(layers) > _LAYERS_PER_BRANCH:
            close()
            continue
        held = sum(len(_layers_of(other)) for other in open_span)
        if held + len(layers) > _LAYERS_PER_BRANCH:
            close()
        open_span.append(unit)
        if held + len(layers) >= _LAYERS_PER_BRANCH or unit is not whole:
            close()
    close()
    return spans, covered


def _calls_in_order(patient: Patient, container: nn.Sequential) -> list[tuple[str, Call]] | None:
    """The calls of its children, if it was called once and ran them one after another."""
    around = patient.calls_of(container)
    if len(around) != 1:
        return None
    (whole,) = around
    children = set(container.children())
    inside = [
        call
        for call in patient.attribution.trace.calls
        if call.module in children and whole.start <= call.start and call.stop <= whole.stop
    ]
    if [call.module for call in inside] != list(container):
        return None
    return list(zip(container._modules, inside, strict=True))


def _units(calls: list[tuple[str, Call]]) -> list[list[tuple[str, Call]]]:
    """A child with weights and what follows it, up to the next such child."""
    units: list[list[tuple[str, Call]]] = []
    for name, call in calls:
        if weight_layers(call.module) or not units:
            units.append([])
        units[-1].append((name, call))
    return units


def _part_that_keeps_shape(unit: list[tuple[str, Call]]) -> list[tuple[str, Call]]:
    """The unit itself, or without what changes the shape at its end: a pool, a flatten."""
    for size in range(len(unit), 0, -1):
        if _keeps_shape(unit[0][1], unit[size - 1][1]):
            return unit if size == len(unit) else unit[:size]
    return []


def _layers_of(unit: Iterable[tuple[str, Call]]) -> list[nn.Module]:
    return [layer for _, call in unit for layer in weight_layers(call.module)]


def _keeps_shape(first: Call, last: Call) -> bool:
    if len(first.inputs) != 1 or len(last.outputs) != 1:
        return False
    given, made = first.inputs[0].tensor, last.outputs[0].tensor
    return given.shape == made.shape and given.dtype == made.dtype


# ---- around one module --------------------------------------------------------------------------


def _takes_a_skip(
    patient: Patient, module: nn.Module, usable: set[nn.Module], taken: set[nn.Module]
) -> bool:
    """Whether ``x + scale * module(x)`` is a residual branch that suits the model."""
    layers = weight_layers(module)
    inside = set(layers) <= usable and not taken & set(layers)
    if not layers or not inside or len(layers) > _LAYERS_PER_BRANCH:
        return False
    calls = patient.calls_of(module)
    if len(calls) != 1 or not _keeps_shape(calls[0], calls[0]) or _writes_input(patient, calls[0]):
        return False
    if module is layers[0]:
        role = next(r for r in patient.attribution.layers if r.module is module)
        if not _passes_positive_numbers(role.consumer):
            return False
    taken.update(layers)
    return True


def _passes_positive_numbers(consumer: Consumer) -> bool:
    """Whether what follows the sum hands it on: a skip past a squashing function leads nowhere."""
    if consumer.function is None:
        return False
    numbers = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)
    try:
        return torch.allclose(consumer.function(numbers), numbers)
    except Exception:
        return False


def _writes_input(patient: Patient, call: Call) -> bool:
    """Whether the module changes what it is given: the skip would add the changed numbers."""
    given = call.inputs[0]
    operations = patient.attribution.trace.operations[call.start : call.stop]
    return any(
        operation.op is not None
        and operation.op._schema.is_mutable
        and given in operation.inputs()[:1]
        for operation in operations
    )
