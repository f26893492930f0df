"""Which batch norms may be folded into which layers, read from a watched forward, and why not."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from stablelightning.functional.fold import norm_as_affine
from stablelightning.model.fold_layers import (
    LAYERS,
    NotFoldable,
    channel_axis,
    channels_along,
    check_layer,
    check_shift,
    has_standard_forward,
    output_channels,
    refuse_hooks,
)
from stablelightning.model.modules import modules_of
from stablelightning.model.operations import operation_name
from stablelightning.model.trace import Call, Operation, Trace, Value
from stablelightning.model.trust import is_trusted

#: Batch norms that are frozen by their class, and so no ``_BatchNorm``.
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
#: Operations by which a forward looks at numbers, and may then go one way or another.
_READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero")


@dataclass(frozen=True, eq=False)
class Pair:
    """A batch norm that may be folded into a layer.

    Args:
        norm: dotted name of the norm.
        layer: dotted name of the layer.
        after: whether the norm reads the layer, and not the layer the norm.
        scale: for each output channel of the layer, or input channel if not ``after``; float64.
        shift: likewise.
        behind: children of the norm that run behind it, by name, such as its activation.
    """

    norm: str
    layer: str
    after: bool
    scale: Tensor
    shift: Tensor
    behind: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Normed:
    """One call of a norm: what it read, and what came out of the norm itself."""

    call: Call
    input: Value
    output: Value
    behind: tuple[str, ...]


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, frozen ones of torchvision and timm included.

    Example:
        >>> is_batch_norm(nn.BatchNorm1d(3)), is_batch_norm(nn.LayerNorm(3))
        (True, False)
    """
    frozen = type(module).__name__ in _FROZEN and is_trusted(module)
    return isinstance(module, _BatchNorm) or frozen


class FoldFinder:
    """Finds the pairs of one model.

    Args:
        model: in eval.
        trace: its watched forward.
        live: modules that draw random numbers when the model is sampled.
    """

    def __init__(self, model: nn.Module, trace: Trace, live: list[nn.Module]) -> None:
        self._names = trace.names
        self._trace = trace
        self._live = live
        self._outputs = {id(value) for value in trace.outputs}
        self._calls: dict[nn.Module, list[Call]] = {}
        self._reading: dict[int, list[Call]] = {}
        self._returning: dict[int, list[Call]] = {}
        for call in trace.calls:
            self._calls.setdefault(call.module, []).append(call)
            for read in {id(v) for v in call.inputs}:
                self._reading.setdefault(read, []).append(call)
            for made in {id(v) for v in call.outputs}:
                self._returning.setdefault(made, []).append(call)
        self._readers: dict[str, list[Operation]] = {}
        for operation in trace.operations:
            for value in operation.inputs():
                if value.name:
                    self._readers.setdefault(value.name, []).append(operation)
        # Registered under two names, a parameter belongs to two layers.
        self._registered = Counter(
            id(p) for m in modules_of(model) for p in m._parameters.values() if p is not None
        )

    def pair(self, norm: nn.Module) -> Pair:
        """The layer that a norm may be folded into: the one before it, else the one behind it.

        Raises:
            NotFoldable: there is none.
        """
        calls = self._calls.get(norm, [])
        if not calls:
            raise NotFoldable("it did not run with the example")
        scale, shift = self._affine(norm)
        normed = [self._normed(call) for call in calls]
        try:
            return self._after(norm, normed, scale, shift)
        except NotFoldable as reason:
            before = str(reason)
        try:
            return self._before(norm, normed, scale, shift)
        except NotFoldable as reason:
            raise NotFoldable(f"{before}; {reason}") from reason

    # ---- the norm -------------------------------------------------------------------------------

    def _affine(self, norm: nn.Module) -> tuple[Tensor, Tensor]:
        if not self._names[norm]:
            raise NotFoldable("it is the model itself")
        refuse_hooks(norm)
        mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            raise NotFoldable("it has no running statistics, and normalises by every batch")
        if norm.training and isinstance(norm, _BatchNorm):
            raise NotFoldable("it is in training mode; call eval() on it")
        if parametrize.is_parametrized(norm):
            raise NotFoldable("its weights are parametrized; remove the parametrization first")
        for name in ("weight", "bias", "running_mean", "running_var"):
            for operation in self._readers.get(f"{self._names[norm]}.{name}", ()):
                if operation.module is not norm:
                    raise NotFoldable(f"its {name} is also read in {self._place(operation)}")
        eps = float(getattr(norm, "eps", 0.0))
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        scale, shift = norm_as_affine(mean, variance, weight=weight, bias=bias, eps=eps)
        if not (scale.isfinite().all() and shift.isfinite().all()):
            raise NotFoldable("its statistics are not finite")
        return scale, shift

    def _normed(self, call: Call) -> _Normed:
        """What one call of a norm's module does: the norm, then perhaps some of its children."""
        if len(call.inputs) != 1 or len(call.outputs) != 1:
            raise NotFoldable("it takes or gives more than one tensor")
        read, output = call.inputs[0], call.outputs[0]
        inside = self._trace.operations[call.start : call.stop]
        children = {id(child): name for name, child in call.module.named_children()}
        behind: list[str] = []
        normed: Value | None = None
        for inner in self._trace.calls:
            if id(inner.module) not in children or not call.start <= inner.start <= call.stop:
                continue
            if inner.stop > call.stop or len(inner.inputs) != 1 or len(inner.outputs) != 1:
                continue
            if not behind:
                normed = inner.inputs[0]
            behind.append(children[id(inner.module)])
            last = inner.outputs[0]
        if normed is None:
            normed = last = output
        if last is not output:
            raise NotFoldable("its class does more than to normalise")
        own = [o for o in inside if o.module is call.module and o.outputs and o.outputs[0].moving]
        norms = [o for o in own if o.kind == "norm"]
        frozen = not isinstance(call.module, _BatchNorm)
        plain = [o.name for o in own] == ["mul", "add"] if frozen else len(own) == len(norms) == 1
        if not plain or own[-1].outputs[0] is not normed:
            raise NotFoldable("its class does more than to normalise")
        if any(o is not own[0] for o in read.users if call.start <= o.number < call.stop):
            raise NotFoldable("its class does more than to normalise")
        return _Normed(call, read, normed, tuple(behind))

    # ---- the two ways ---------------------------------------------------------------------------

    def _after(self, norm: nn.Module, calls: list[_Normed], scale: Tensor, shift: Tensor) -> Pair:
        """The layer whose output the norm reads."""
        layers, maps = [], []
        for one in calls:
            made, path = self._made_by_layer(one.input)
            self._check_path(path, made, one.call)
            layers.append(made)
            maps.append(channels_along(path, channel_axis(made), axis=1))
        layer = self._one_layer(layers, maps)
        if not has_standard_forward(layer):
            self._check_own_forward(layer, layers)
        found = maps[0]
        channels = output_channels(layer)
        # Which norm's channel each of the layer's goes to.
        if sorted(found.tolist()) != list(range(channels)):
            raise NotFoldable(
                f"between {self._names[layer]} and it, channels are not kept one to one"
            )
        order = found.argsort()
        names = self._names[norm], self._names[layer]
        pair = Pair(*names, True, scale[order], shift[order], calls[0].behind)
        return self._checked(pair, layer)

    def _before(self, norm: nn.Module, calls: list[_Normed], scale: Tensor, shift: Tensor) -> Pair:
        """The layer that reads the norm."""
        layers, maps = [], []
        for one in calls:
            if one.behind:
                raise NotFoldable(f"it ends with its own {one.behind[-1]}")
            reader, path = self._read_by_layer(one.output)
            self._check_path(path, one.call, reader)
            layers.append(reader)
            maps.append(channels_along(path, 1, axis=channel_axis(reader), many=True))
        layer, found = self._one_layer(layers, maps), maps[0]
        pair = Pair(self._names[norm], self._names[layer], False, scale[found], shift[found])
        if not has_standard_forward(layer):
            raise NotFoldable(f"{pair.layer} behind it has a forward of its own")
        if bool(pair.shift.any()):
            check_shift(pair.layer, layer)
        return self._checked(pair, layer)

    def _made_by_layer(self, value: Value) -> tuple[Call, list[Value]]:
        """The call of a layer that made a value, and what lies between, in order."""
        path = [value]
        while True:
            for call in self._returning.get(id(path[0]), ()):
                if isinstance(call.module, LAYERS) and call.outputs == [path[0]]:
                    return call, path
            maker = path[0].maker
            if maker is None or maker.kind != "view" or maker.op is None:
                raise NotFoldable(f"it reads {self._said(maker)}, and not a layer")
            earlier = [v for v in maker.inputs() if v.moving]
            if len(earlier) != 1:
                raise NotFoldable(f"it reads {self._said(maker)}, and not a layer")
            path.insert(0, earlier[0])

    def _read_by_layer(self, value: Value) -> tuple[Call, list[Value]]:
        """The call of the one layer that reads a value, and what lies between, in order."""
        path = [value]
        while True:
            for call in self._reading.get(id(path[-1]), ()):
                if isinstance(call.module, LAYERS) and call.inputs == [path[-1]]:
                    return call, path
            readers = set(path[-1].users)
            if not readers:
                raise NotFoldable("what it gives is the model's output")
            if len(readers) > 1:
                raise NotFoldable("what it gives has several readers")
            (reader,) = readers
            if reader.kind != "view" or reader.op is None or len(reader.outputs) != 1:
                raise NotFoldable(f"what it gives is read by {self._said(reader)}")
            path.append(reader.outputs[0])

    def _check_path(self, path: list[Value], first: Call, last: Call) -> None:
        """Refuse what else sees, keeps or changes the values between two modules."""
        for number, value in enumerate(path):
            following = path[number + 1].maker if number + 1 < len(path) else None
            for user in value.users:
                if user is not following and not last.start <= user.number < last.stop:
                    raise NotFoldable(f"{self._said(user)} reads what lies between, too")
            if id(value) in self._outputs:
                raise NotFoldable("what lies between is an output of the model")
            for call in {
                id(c): c
                for c in (*self._reading.get(id(value), ()), *self._returning.get(id(value), ()))
            }.values():
                if call is first or call is last:
                    continue
                place = self._names[call.module] or "the model"
                if call.module._forward_hooks or call.module._forward_pre_hooks:
                    raise NotFoldable(f"a hook on {place} sees what lies between")
                passed = value in call.inputs and value in call.outputs
                if passed and any(m in self._live for m in modules_of(call.module)):
                    raise NotFoldable(f"{place} lies between, and is random when it is sampled")
        self._refuse_ways(first, last)

    def _refuse_ways(self, first: Call, last: Call) -> None:
        """Refuse where a module that runs both looks at numbers: it may go another way."""
        around = [c.module for c in self._trace.calls if _contains(c, first) and _contains(c, last)]
        for operation in self._trace.operations:
            if operation.op is None or operation_name(operation.op) not in _READS:
                continue
            if operation.module is None or operation.module in around:
                raise NotFoldable(
                    f"the forward of {self._place(operation)} reads numbers back into Python, and "
                    "may go another way for another input"
                )

    def _one_layer(self, calls: list[Call], maps: list[Tensor]) -> nn.Module:
        """The layer, if it is the same one in all calls, and has no others."""
        layer = calls[0].module
        name = self._names[layer]
        if any(call.module is not layer for call in calls):
            raise NotFoldable("it is called several times, beside several layers")
        if len({id(call) for call in calls}) != len(self._calls[layer]) or len(calls) != len(
            self._calls[layer]
        ):
            raise NotFoldable(f"{name} is called once more without it")
        if any(not torch.equal(found, maps[0]) for found in maps):
            raise NotFoldable("its calls have different shapes")
        return layer

    def _check_own_forward(self, layer: nn.Module, calls: list[Call]) -> None:
        """Refuse a class of somebody's whose output is not that of its convolution."""
        for call in calls:
            inside = self._trace.operations[call.start : call.stop]
            mixing = [o for o in inside if o.kind in ("convolution", "matmul")]
            if len(mixing) != 1 or mixing[0].outputs[:1] != call.outputs:
                raise NotFoldable(f"{self._names[layer]} has a forward of its own that does more")

    # ---- the layer ------------------------------------------------------------------------------

    def _checked(self, pair: Pair, layer: nn.Module) -> Pair:
        check_layer(pair.layer, layer)
        for what, parameter in layer.named_parameters(recurse=False):
            full = f"{pair.layer}.{what}"
            if self._registered[id(parameter)] > 1:
                raise NotFoldable(f"{full} is shared with another module")
            for operation in self._readers.get(full, ()):
                if operation.module is not layer:
                    raise NotFoldable(f"{full} is also read in {self._place(operation)}")
        if not self._readers.get(f"{pair.layer}.weight"):
            raise NotFoldable(f"{pair.layer} computes with another weight than its own")
        return pair

    # ---- words ----------------------------------------------------------------------------------

    def _place(self, operation: Operation) -> str:
        name = "" if operation.module is None else self._names[operation.module]
        return name or "the model itself"

    def _said(self, operation: Operation | None) -> str:
        if operation is None:
            return "a parameter or a constant"
        if operation.kind == "input":
            return "an input of the model"
        return f"{operation.name} in {self._place(operation)}"


def _contains(outer: Call, inner: Call) -> bool:
    return outer is not inner and outer.start <= inner.start and inner.stop <= outer.stop
