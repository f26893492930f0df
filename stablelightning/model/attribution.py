"""What consumes each layer's output, read from a watched forward pass.

Each weight's output is followed through views, norms, dropout, additions and pooling to the first
function that bends it, or to the next weight. Where a stream has several readers, the one behind
the fewest additions counts, a bending function before a straight one, the first to run before the
others.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn

from stablelightning.model.branches import Branch, find_branches
from stablelightning.model.regions import affine, constant, name_of, region_of
from stablelightning.model.trace import Operation, Trace, Value, watch
from stablelightning.model.weights import WeightUse, weight_uses

#: The kinds of operation that hand a signal on, and what the route calls them.
_TRANSPARENT = ("view", "slice", "cat", "pool", "norm", "dropout")
#: Operations after which it makes no sense to follow: the numbers become positions or truths.
_DEAD_ENDS = ("argmax", "argmin", "argsort", "eq", "ge", "gt", "le", "lt", "ne", "shape", "size")


@dataclass(frozen=True)
class Consumer:
    """What a layer's output runs into.

    Args:
        name: ``"relu"``, ``"gelu"``, ..., of a function, however it was written; ``"linear"`` for
            another weight or the model's output; ``"softmax"``, ``"attention"``, ``"recurrent"``;
            ``"gate"`` where it is multiplied by another signal of its shape.
        function: the whole function of one number, on tensors of any float type; ``None`` for
            those that are not one.
        normalised: whether a norm lies between.
        route: what was passed on the way, in order: ``slice``, ``cat``, ``pool``, ``norm``,
            ``dropout``, ``add``, ``bias``, ``scale``, ``gate`` (a product with a broadcast signal).
        module: dotted name of the module in which it ran.
    """

    name: str
    function: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    normalised: bool = False
    route: tuple[str, ...] = ()
    module: str = ""


@dataclass(frozen=True)
class LayerRole:
    """One weight and its place in the network.

    Args:
        name: dotted name of the module that owns the weight.
        module: that module.
        kind: ``"linear"``, ``"conv"``, ``"transposed_conv"``, ``"recurrent"``, ``"attention"`` (the
            joint input projection of an attention module), ``"embedding"`` or ``"other"``.
        parameters: dotted names of the parameters that the weight is made of.
        consumer: what its output runs into.
        others: further consumers of its output, where there are several.
        depth: weights on the longest path before it.
        branch: the innermost residual branch that it is part of.
        uses: how often the forward uses it.
        is_input: whether it reads the model's input, no other weight between.
        is_output: whether the model returns its output, perhaps bent, with no weight after it.
    """

    name: str
    module: nn.Module
    kind: str
    parameters: tuple[str, ...]
    consumer: Consumer
    others: tuple[Consumer, ...] = ()
    depth: int = 0
    branch: Branch | None = None
    uses: int = 1
    is_input: bool = False
    is_output: bool = False


@dataclass
class Attribution:
    """What :func:`attribute` found.

    Args:
        layers: one for each weight, in the order of their first use.
        branches: residual branches, in the order of their additions.
        notes: what could not be followed, in words.
        depth: weights on the longest path through the model.
        plain_depth: weights on the longest stretch without a norm or a way around.
        trace: the watched forward itself.
    """

    layers: list[LayerRole]
    branches: list[Branch]
    notes: list[str]
    depth: int
    plain_depth: int
    trace: Trace = field(repr=False)

    def __getitem__(self, name: str) -> LayerRole:
        """The role of the layer of that dotted name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def attribute(
    model: nn.Module, inputs: Any, *, call: Callable[..., Any] | None = None
) -> Attribution:
    """Find what consumes each weight of a model, from one forward pass in eval.

    Args:
        model: any eager module; left as it was.
        inputs: a tensor, a tuple or list to spread, or a dict of keywords.
        call: what is called instead of the model itself.

    Returns:
        An :class:`Attribution`.

    Raises:
        DataError: the inputs do not fit the forward.
        ModelError: the model is scripted.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1))
        >>> [layer.consumer.name for layer in attribute(net, torch.zeros(1, 2)).layers]
        ['gelu', 'linear']
    """
    return read(model, watch(model, inputs, call=call))


def read(model: nn.Module, trace: Trace) -> Attribution:
    """The same, from a trace that is there already."""
    uses = weight_uses(model, trace)
    branches, way = find_branches(trace, uses)
    follower = _Follower(trace, uses)
    first: dict[tuple[str, ...], WeightUse] = {}
    times: dict[tuple[str, ...], int] = {}
    for use in uses:
        first.setdefault(use.parameters, use)
        times[use.parameters] = times.get(use.parameters, 0) + 1
    layers = []
    for parameters, use in first.items():
        found = follower.consumers(use.output)
        chosen = found[0] if found else Consumer("linear")
        layers.append(
            LayerRole(
                name=use.name,
                module=use.module,
                kind=use.kind,
                parameters=parameters,
                consumer=chosen,
                others=tuple(found[1:]),
                depth=way.depth[use.operation.number],
                branch=_innermost(branches, use.operation.number),
                uses=times[parameters],
                is_input=way.depth[use.operation.number] == 0,
                is_output=use.operation.number in way.last,
            )
        )
    notes = [*trace.notes, *_unreached(model, layers)]
    return Attribution(layers, branches, notes, way.longest, way.plain, trace)


def _innermost(branches: list[Branch], number: int) -> Branch | None:
    around = [b for b in branches if number in b.members]
    return min(around, key=lambda b: len(b.members), default=None)


def _unreached(model: nn.Module, layers: list[LayerRole]) -> list[str]:
    reached = {name for layer in layers for name in layer.parameters}
    missed = [
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if name.endswith(("weight", "weight_ih_l0", "in_proj_weight"))
        and parameter.ndim >= 2
        and name not in reached
    ]
    return [f"{name or 'the model'}: the example did not reach it" for name in missed]


class _Follower:
    """Follows one value to its consumers."""

    def __init__(self, trace: Trace, uses: list[WeightUse]) -> None:
        self._outputs = {id(value) for value in trace.outputs}
        self._weights = {use.operation.number for use in uses}
        self._names = trace.names

    def consumers(self, start: Value) -> list[Consumer]:
        """Every consumer, the one that counts first."""
        found: list[tuple[int, bool, int, Consumer]] = []
        order = count()
        pending: list[tuple[int, int, Value, tuple[str, ...]]] = [(0, next(order), start, ())]
        seen: set[int] = set()
        limit: int | None = None
        while pending:
            adds, _, value, route = heapq.heappop(pending)
            if limit is not None and adds > limit:
                break
            if id(value) in seen:
                continue
            seen.add(id(value))
            for step in self._steps(value, route):
                if isinstance(step, _End):
                    limit = adds
                    straight = step.consumer.function is None
                    found.append((adds, straight, step.number, step.consumer))
                else:
                    further = adds + (step.kind == "add")
                    passed = route if step.kind == "view" else (*route, step.kind)
                    heapq.heappush(pending, (further, next(order), step.value, passed))
        found.sort(key=lambda item: item[:3])
        return list(dict.fromkeys(consumer for *_, consumer in found))

    def _steps(self, value: Value, route: tuple[str, ...]) -> list["_End | _Step"]:
        """Where a value goes: to consumers, or on to other values."""
        alone = self._by_a_parameter(value)
        if alone is not None:
            return [alone]
        steps: list[_End | _Step] = []
        region = region_of(value, self._outputs)
        inside = {id(o) for o in region.operations}
        statistics = self._statistics(value)
        for exit_value in region.exits:
            bent = self._unscaled(exit_value, value)
            operations = [o for o in region.operations if o.number <= _number(bent)]
            function = None if bent is value else region.function(bent)
            if function is not None and affine(function) is None:
                readers = [u for u in exit_value.users if id(u) not in inside]
                if readers and all(u.number in statistics for u in readers):
                    continue
                steps.append(self._bends(function, operations, route, bent))
                continue
            if id(exit_value) in self._outputs:
                steps.append(_End(Consumer("linear", None, *_way(route)), 1 << 60))
            for user in exit_value.users:
                if id(user) not in inside and user.number not in statistics:
                    steps += self._past(user, exit_value, value, route)
        return steps

    def _bends(
        self, function: Any, operations: list[Operation], route: tuple[str, ...], end: Value
    ) -> "_End":
        maker = end.maker
        assert maker is not None
        name = name_of(function, operations)
        place = "" if maker.module is None else self._names[maker.module]
        return _End(Consumer(name, function, *_way(route), module=place), maker.number)

    def _past(
        self, user: Operation, value: Value, start: Value, route: tuple[str, ...]
    ) -> list["_End | _Step"]:
        """What one reader does with the value."""
        if not user.outputs or not user.outputs[0].moving or user.name in _DEAD_ENDS:
            return []
        place = "" if user.module is None else self._names[user.module]
        if user.number in self._weights:
            name = "recurrent" if user.kind == "recurrent" else "linear"
            return [_End(Consumer(name, None, *_way(route), module=place), user.number)]
        named = {
            "softmax": "softmax",
            "attention": "attention",
            "matmul": "attention",
            "convolution": "attention",
            "recurrent": "recurrent",
            "glu": "gate",
        }
        if user.kind in named:
            consumer = Consumer(named[user.kind], None, *_way(route), module=place)
            return [_End(consumer, user.number)]
        if user.kind in _TRANSPARENT:
            kind = user.kind
            outputs = user.outputs[:1] if kind in ("norm", "pool") else user.outputs
            return [_Step(kind, output) for output in outputs]
        if user.kind in ("add", "multiply"):
            return self._joins(user, value, start, route, place)
        if user.kind == "statistic":
            return [_Step("pool", user.outputs[0])]
        # Anything else that moves numbers about: a cumulative sum, a sort, a Fourier transform.
        return [_Step(user.name, output) for output in user.outputs]

    def _joins(
        self, user: Operation, value: Value, start: Value, route: tuple[str, ...], place: str
    ) -> list["_End | _Step"]:
        """An addition or product of the value with another tensor."""
        output = user.outputs[0]
        others = [v for v in user.inputs() if v is not value]
        if not others or not any(v.moving for v in others):
            return [_Step("bias" if user.kind == "add" else "scale", output)]
        if any(self._measures(other, start) for other in others):
            return [_Step("norm", output)]
        if user.kind == "add":
            return [_Step("add", output)]
        shape = value.tensor.shape
        if all(v.tensor.shape == shape for v in others):
            return [_End(Consumer("gate", None, *_way(route), module=place), user.number)]
        broadcast = output.tensor.shape == shape
        return [_Step("gate", output)] if broadcast else []

    # ---- norms that are written by hand ------------------------------------------------------

    def _by_a_parameter(self, value: Value) -> "_Step | None":
        """A lone product or sum with a parameter: scale or bias, not part of a function."""
        if len(value.users) != 1 or id(value) in self._outputs:
            return None
        (user,) = value.users
        if user.kind not in ("add", "multiply") or not user.outputs:
            return None
        others = [v for v in user.inputs() if v is not value]
        if others and not any(v.moving for v in others) and user.args[0] is value:
            if all(v.maker is None and v.name == "" for v in others):
                return None  # a constant of the forward's own
            return _Step("bias" if user.kind == "add" else "scale", user.outputs[0])
        return None

    @staticmethod
    def _unscaled(value: Value, start: Value) -> Value:
        """Before what parameters do to a value at the end of a region: a learned scale or bias."""
        while value is not start and value.maker is not None:
            maker = value.maker
            given = maker.inputs()
            moving = [v for v in given if v.moving]
            learned = [v for v in given if not v.moving and (v.name or v.maker is not None)]
            if maker.kind not in ("add", "multiply") or len(moving) != 1 or not learned:
                return value
            value = moving[0]
        return value

    def _statistics(self, start: Value) -> set[int]:
        """Operations that only measure the start, to centre or divide it by what they found."""
        found: set[int] = set()
        centred = [start]  # x, then x - mean(x), which var(x) divides
        for value in centred:
            for user in value.users:
                if user.kind not in ("add", "multiply"):
                    continue
                between = {
                    n for v in user.inputs() if v is not value for n in self._measures(v, start)
                }
                found |= between
                if between and user.outputs[0] not in centred:
                    centred.append(user.outputs[0])
        return found

    def _measures(self, other: Value, start: Value) -> set[int]:
        """The operations between a value and a statistic of it; none if it is no statistic.

        A statistic reduces: it comes from the value through a mean, a sum or a norm, and no weight.
        """
        between: set[int] = set()
        reduces = reached = False
        pending = [other]
        floor = _number(start)
        while pending:
            value = pending.pop()
            if value is start:
                reached = True
                continue
            maker = value.maker
            if maker is None or maker.number <= floor or maker.number in between:
                continue
            if maker.number in self._weights:
                return set()
            between.add(maker.number)
            reduces |= maker.kind == "statistic" or maker.name in ("mean", "sum", "amax", "max")
            pending += [v for v in maker.inputs() if v.moving]
        return between if reduces and reached else set()


@dataclass(frozen=True)
class _End:
    consumer: Consumer
    number: int


@dataclass(frozen=True)
class _Step:
    kind: str
    value: Value


def _number(value: Value) -> int:
    return -1 if value.maker is None else value.maker.number


def _way(route: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
    return "norm" in route, route


__all__ = ["Attribution", "Branch", "Consumer", "LayerRole", "attribute", "constant", "read"]
