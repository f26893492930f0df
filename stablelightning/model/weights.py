"""The weights of a model as a watched forward uses them."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from stablelightning.model.trace import RECURRENT, Operation, Trace, Value

#: Operations that mix a signal by a weight.
_MIXES = ("matmul", "convolution", "embedding", "recurrent")
#: What parametrizations call the folder of their parameters.
_PARAMETRIZED = ".parametrizations."


@dataclass(frozen=True, eq=False)
class WeightUse:
    """One use of a weight.

    Args:
        name: dotted name of the module that owns it.
        module: that module.
        kind: see :class:`~stablelightning.model.attribution.LayerRole`.
        parameters: dotted names of the parameters that the weight is made of.
        operation: what used it.
        output: what came out.
    """

    name: str
    module: nn.Module
    kind: str
    parameters: tuple[str, ...]
    operation: Operation
    output: Value


def weight_uses(model: nn.Module, trace: Trace) -> list[WeightUse]:
    """Every use of a weight, in order."""
    modules = dict(model.named_modules())
    uses = []
    for operation in trace.operations:
        if operation.kind not in _MIXES or not operation.outputs:
            continue
        parameters = _parameters(operation)
        if not parameters:
            continue
        if operation.kind != "embedding" and not any(v.moving for v in operation.inputs()):
            continue  # a weight is computed: a power iteration, a product of low rank
        owner = _owner(parameters[0])
        module = modules.get(owner, model)
        if operation.kind == "recurrent" and operation.module is not None:
            module, owner = operation.module, trace.names[operation.module]
        kind = _kind(operation, module, parameters)
        uses.append(WeightUse(owner, module, kind, parameters, operation, operation.outputs[0]))
    return uses


def _parameters(operation: Operation) -> tuple[str, ...]:
    """Names of the parameters that the operation's weight is made of; its bias is not one."""
    candidates = [v for v in operation.inputs() if not v.moving]
    if operation.op is not None:
        bias = {"addmm": 0, "baddbmm": 0, "addmv": 0, "addbmm": 0}.get(operation.name)
        if bias is not None:
            candidates = [v for v in candidates if v is not operation.args[bias]]
        elif operation.kind == "convolution":
            candidates = [v for v in operation.args[1:2] if isinstance(v, Value) and not v.moving]
        elif operation.kind == "embedding":
            candidates = [v for v in operation.args[:1] if isinstance(v, Value)]
        elif operation.name in ("linear", "mkldnn_linear"):
            candidates = [v for v in operation.args[1:2] if isinstance(v, Value) and not v.moving]
    found: dict[str, int] = {}
    pending = candidates[::-1]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen or value.moving:
            continue
        seen.add(id(value))
        if value.name and value.tensor.ndim >= 1 and _is_parameter(value):
            found[value.name] = value.tensor.ndim
        elif value.maker is not None:
            pending += value.maker.inputs()[::-1]
    matrices = tuple(name for name, ndim in found.items() if ndim >= 2)
    return matrices or tuple(found)


def _is_parameter(value: Value) -> bool:
    return isinstance(value.tensor, nn.Parameter)


def _owner(parameter: str) -> str:
    if _PARAMETRIZED in f".{parameter}":
        return f".{parameter}".partition(_PARAMETRIZED)[0].lstrip(".")
    return parameter.rpartition(".")[0]


def _kind(operation: Operation, module: nn.Module, parameters: tuple[str, ...]) -> str:
    if operation.kind == "recurrent" or isinstance(module, RECURRENT):
        return "recurrent"
    if operation.kind == "embedding" or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if operation.kind == "convolution":
        transposed = isinstance(module, _ConvTransposeNd) or (
            not isinstance(module, _ConvNd) and operation.args[6:7] == (True,)
        )
        return "transposed_conv" if transposed else "conv"
    if isinstance(module, nn.MultiheadAttention) and "in_proj" in parameters[0]:
        return "attention"
    if isinstance(module, nn.MultiheadAttention) and "_proj_weight" in parameters[0]:
        return "attention"
    return "linear" if operation.kind == "matmul" else "other"
