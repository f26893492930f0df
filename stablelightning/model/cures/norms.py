"""Cures around norms: insert one behind a layer, drop a bias that one makes void."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from stablelightning.model.attribution import LayerRole
from stablelightning.model.cures.patient import Patient
from stablelightning.model.cures.treatment import NotSafe, module_named
from stablelightning.nn.added import ADDED_NORM, add_norm

#: Batch statistics of fewer rows than this say nothing.
_FEWEST_ROWS = 2

_KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
}


def plan_norms(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Choose a norm for each named layer, or each in the named containers.

    Batch norm behind linear layers and convolutions; layer norm where the output is a sequence, of
    a recurrent layer, and where a batch has one row only (behind a convolution, a group norm of one
    group).

    Args:
        patient: the model.
        modules: dotted names of layers or containers; none is every hidden layer.
        arguments: none.

    Raises:
        NotSafe: no layer can take one.
    """
    reasons: dict[str, list[str]] = {}
    places = []
    for role in patient.roles(modules):
        reason = _why_no_norm(role)
        chosen = None if reason else _norm_for(patient, role)
        if chosen is None:
            reasons.setdefault(reason or "its output is no batch of features", []).append(role.name)
        else:
            places.append({"module": role.name, **chosen})
    if not places:
        told = "; ".join(f"{', '.join(names[:3])}: {why}" for why, names in reasons.items())
        raise NotSafe(told or "the named modules hold no layer that the example reaches")
    return {"places": places}


def _why_no_norm(role: LayerRole) -> str:
    if role.is_output:
        return "it is an output"
    if role.consumer.normalised or ADDED_NORM in role.module._modules:
        return "a norm follows already"
    if role.uses != 1:
        return f"it is used {role.uses} times"
    if role.kind not in ("linear", "conv", "transposed_conv", "recurrent"):
        return f"its kind is {role.kind}"
    return ""


def _norm_for(patient: Patient, role: LayerRole) -> dict[str, Any] | None:
    calls = patient.calls_of(role.module)
    if len(calls) != 1 or not calls[0].outputs:
        return None
    output = calls[0].outputs[0].tensor
    module, rows = role.module, len(output) if output.ndim else 0
    if isinstance(module, _ConvNd):
        dims = len(module.kernel_size)
        if output.ndim != dims + 2:
            return None  # one image without its batch
        if rows < _FEWEST_ROWS:
            return {"norm": "GroupNorm", "arguments": [1, module.out_channels]}
        return {"norm": f"BatchNorm{dims}d", "arguments": [module.out_channels]}
    if output.ndim < 2:
        return None
    if isinstance(module, nn.Linear) and output.ndim == 2 and rows >= _FEWEST_ROWS:
        return {"norm": "BatchNorm1d", "arguments": [module.out_features]}
    if isinstance(module, nn.Linear | nn.RNNBase):
        return {"norm": "LayerNorm", "arguments": [output.shape[-1]]}
    return None


def perform_norms(model: nn.Module, plan: dict[str, Any]) -> None:
    """Insert the planned norms."""
    for place in plan["places"]:
        norm = _KINDS[place["norm"]](*place["arguments"])
        add_norm(module_named(model, place["module"]), norm)


def tell_norms(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    by_kind: dict[str, list[str]] = {}
    for place in plan["places"]:
        by_kind.setdefault(place["norm"], []).append(place["module"])
    told = [
        f"{kind} behind {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        for kind, names in by_kind.items()
    ]
    return f"{', '.join(told)}, as their child {ADDED_NORM}; no weight was changed or renamed"


# ---- void biases --------------------------------------------------------------------------------


def plan_bias_drop(
    patient: Patient, modules: tuple[str, ...], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Find the named layers whose output goes straight into a batch norm, and nowhere else.

    Args:
        patient: the model.
        modules: dotted names of layers or containers; none is every layer.
        arguments: none.

    Raises:
        NotSafe: no bias is void for certain.
    """
    norms = {
        id(call.inputs[0]): call.module
        for call in patient.attribution.trace.calls
        if isinstance(call.module, _BatchNorm) and len(call.inputs) == 1
    }
    names = patient.names
    places = []
    for role in patient.roles(modules):
        bias = getattr(role.module, "bias", None)
        calls = patient.calls_of(role.module)
        if not isinstance(bias, nn.Parameter) or role.uses != 1 or len(calls) != 1:
            continue
        (output,) = calls[0].outputs if len(calls[0].outputs) == 1 else (None,)
        norm = norms.get(id(output))
        if output is not None and norm is not None and len(output.users) == 1:
            places.append({"module": role.name, "norm": names[norm]})
    if not places:
        raise NotSafe("no bias is followed by a batch norm alone, which would take it away again")
    return {"places": places}


def perform_bias_drop(model: nn.Module, plan: dict[str, Any]) -> None:
    """Drop the planned biases; the running means take them over, so that eval stays as it was."""
    for place in plan["places"]:
        layer, norm = module_named(model, place["module"]), module_named(model, place["norm"])
        bias = layer._parameters.get("bias")
        mean = getattr(norm, "running_mean", None)
        if bias is not None and isinstance(mean, torch.Tensor):
            with torch.no_grad():
                mean.sub_(bias.to(mean.dtype))
        layer.register_parameter("bias", None)


def tell_bias_drop(plan: dict[str, Any]) -> str:
    """What was done, in words."""
    places = plan["places"]
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return (
        f"the bias of {places[0]['module']}{more} is gone: the batch norm behind it takes any bias "
        "away again; its running mean was moved, so that outputs in eval are the same"
    )
