"""What consumes a value: the first functions, weights or attentions that it runs into.

A value is followed through views, norms, dropout, additions and pooling to the first function that
bends it, or to the next weight. Where a stream has several readers, the one behind the fewest
additions counts, a bending function before a straight one, the first to run before the others.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor

from stablelightning.model.regions import affine, name_of, region_of
from stablelightning.model.trace import Operation, Trace, Value
from stablelightning.model.weights import WeightUse

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
        route: what was passed on the way, in order, each kind once in a row: ``slice``, ``cat``,
            ``pool``, ``norm``, ``dropout``, ``add``, ``bias``, ``scale``, ``gate`` (a product with
            a broadcast signal).
        module: dotted name of the module in which it ran.
    """

    name: str
    function: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    normalised: bool = False
    route: tuple[str, ...] = ()
    module: str = ""


class Follower:
    """Follows a value to its consumers.

    Args:
        trace: the watched forward.
        uses: every use of a weight in it.
    """

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
                    again = step.kind == "view" or route[-1:] == (step.kind,)
                    passed = route if again else (*route, step.kind)
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
            if not exit_value.tensor.is_floating_point():
                continue  # a mask, or positions: who reads them does not read the signal
            bent = self._unscaled(exit_value, value)
            function = None if bent is value else region.function(bent)
            if function is not None and affine(function) is None:
                readers = [u for u in exit_value.users if id(u) not in inside]
                if readers and all(u.number in statistics for u in readers):
                    continue
                steps.append(self._bends(function, region.computing(bent), route, bent))
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
