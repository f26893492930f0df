"""Pointwise regions: every function of one number that a forward computes, however it is written.

``x * sigmoid(x)``, softsign or a hand-written GELU run as several operations. Those that need
nothing but one tensor and constants are taken together and replayed on numbers of our choice.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from stablelightning.model.inputs import leaves_of
from stablelightning.model.operations import overwritten_arguments, written_arguments
from stablelightning.model.trace import Operation, Value

Scalar = Callable[[Tensor], Tensor]

#: Operations that change how numbers are stored, not which: part of a region.
_SAME_NUMBERS = ("_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "to")
_PRELU = ("_prelu_kernel", "prelu")
#: The slopes that nn.RReLU draws between, unless it is told others.
_RRELU_SLOPES = (1 / 8, 1 / 3)
#: Where functions are compared: both sides of the origin, into the tails, off the usual kinks.
_GRID = tuple(i / 16 + 0.01 for i in range(-128, 129))
#: Two functions are one if they differ by no more than single-precision constants make them differ.
_SAME = 2e-6
#: Of so many functions is remembered how they run.
_REMEMBERED = 256
#: What nn.PReLU starts from, for weights that hold no numbers yet.
_PRELU_START = 0.25


@dataclass(eq=False)
class Region:
    """All values that are pointwise functions of one value.

    Args:
        start: the value that they are functions of.
        operations: what computes them, in order.
        exits: those that something outside of the region reads, in the order in which they were
            made; the start itself may be one.
    """

    start: Value
    operations: list[Operation] = field(default_factory=list)
    exits: list[Value] = field(default_factory=list)

    def function(self, exit_value: Value) -> Scalar:
        """The function from the start to one of the exits, on tensors of any float type.

        It holds nothing of the trace: what keeps it does not keep the tensors of the pass.
        """
        if exit_value is self.start:
            return torch.clone
        places = {id(self.start): 0}
        instructions = []
        for operation in self.computing(exit_value):
            instructions.append(_instruction(operation, places))
            places[id(operation.outputs[0])] = len(places)
        recipe = (tuple(instructions), places[id(exit_value)])
        try:
            return _replay(recipe)
        except TypeError:  # an argument that cannot be looked up, such as a generator
            return _replay.__wrapped__(recipe)

    def computing(self, exit_value: Value) -> list[Operation]:
        """The operations that one of the exits needs, in order."""
        wanted, needed = {id(exit_value)}, []
        for operation in reversed(self.operations):
            if id(operation.outputs[0]) in wanted:
                needed.append(operation)
                wanted.update(id(v) for v in operation.inputs())
        return needed[::-1]


def region_of(start: Value, outputs: set[int]) -> Region:
    """Collect the pointwise region that begins at a value.

    Args:
        start: any value of a trace.
        outputs: ids of the values that the model returns: they are read from outside.

    Returns:
        The region; its only exit is the start where nothing pointwise follows.
    """
    region = Region(start)
    inside = {id(start)}
    values = [start]
    pending = [(user.number, user) for user in start.users]
    heapq.heapify(pending)
    seen: set[int] = set()
    while pending:
        number, operation = heapq.heappop(pending)
        if number in seen:
            continue
        seen.add(number)
        if not _is_pointwise(operation, inside):
            continue
        region.operations.append(operation)
        # A second output, such as a buffer for the backward pass, is nobody's business.
        value = operation.outputs[0]
        inside.add(id(value))
        values.append(value)
        for user in value.users:
            heapq.heappush(pending, (user.number, user))
    members = {id(operation) for operation in region.operations}
    for value in values:
        if id(value) in outputs or any(id(user) not in members for user in value.users):
            region.exits.append(value)
    return region


def _is_pointwise(operation: Operation, inside: set[int]) -> bool:
    if operation.op is None or not operation.outputs:
        return False
    same_numbers = operation.kind == "view" and operation.name in _SAME_NUMBERS
    if not same_numbers and operation.kind not in ("pointwise", "add", "multiply"):
        return False
    if operation.name == "rrelu_with_noise" or operation.name in _PRELU:
        return True
    return all(id(v) in inside or constant(v) is not None for v in operation.inputs())


def constant(value: Value) -> float | None:
    """The one number that a value holds everywhere, if it does not depend on the inputs."""
    if value.moving or value.tensor.numel() == 0 or value.tensor.is_complex():
        return None
    tensor = value.tensor.detach()
    if tensor.is_meta:
        return None
    first = tensor.flatten()[0]
    if tensor.numel() > 1 and not bool((tensor == first).all()):
        return None
    return float(first)


_Step = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class _Place:
    """Stands for the number at a place of the list that a replay fills."""

    index: int


@dataclass(frozen=True)
class _Constant:
    number: float
    dtype: torch.dtype | None  # None: that of the numbers given


@dataclass(frozen=True)
class _Instruction:
    """One operation, ready to be replayed. It holds numbers, not the tensors of the trace."""

    op: OpOverload
    name: str
    first: int
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    given: tuple[str, ...]  # names of all keywords, with those that are written over
    made: torch.dtype | None
    text: str = ""  # of the arguments: 0.0 equals -0.0, and 1 equals True


def _instruction(operation: Operation, places: dict[int, int]) -> _Instruction:
    def stand_in(leaf: Any) -> Any:
        if isinstance(leaf, list | tuple):
            return tuple(map(stand_in, leaf))
        if not isinstance(leaf, Value):
            return leaf
        return _Place(places[id(leaf)]) if id(leaf) in places else _constant_of(leaf)

    op = operation.op
    assert op is not None
    first = next(places[id(v)] for v in operation.inputs() if id(v) in places)
    made = _dtype(operation.outputs[0])
    if operation.name in _SAME_NUMBERS:
        return _Instruction(op, operation.name, first, (), (), (), made)
    out = overwritten_arguments(op)
    read = tuple((key, stand_in(a)) for key, a in operation.kwargs.items() if key not in out)
    args, keys = stand_in(operation.args), tuple(operation.kwargs)
    return _Instruction(op, operation.name, first, args, read, keys, made, repr((args, read)))


@lru_cache(maxsize=_REMEMBERED)
def _replay(recipe: tuple[tuple[_Instruction, ...], int]) -> Scalar:
    """One function for all regions that do the same: what is known of it is known of all."""
    instructions, wanted = recipe
    steps = [_step(instruction) for instruction in instructions]

    def replay(x: Tensor) -> Tensor:
        numbers = [x]
        for step in steps:
            numbers.append(step(numbers))
        return numbers[wanted]

    return replay


def _step(instruction: _Instruction) -> _Step:
    first, made, op = instruction.first, instruction.made, instruction.op
    if instruction.name in _SAME_NUMBERS:
        return lambda numbers: numbers[first].to(made or numbers[0].dtype)
    if instruction.name == "rrelu_with_noise":  # in eval: the mean of its slopes
        given_slopes = [float(a) for a in instruction.args[2:4]]
        slope = sum([*given_slopes, *_RRELU_SLOPES[len(given_slopes) :]]) / 2
        return lambda numbers: F.leaky_relu(numbers[first], slope)
    args, kwargs = instruction.args, dict(instruction.kwargs)
    out = [str(key) for key in overwritten_arguments(op) if key in instruction.given]
    written = [key for key in written_arguments(op) if isinstance(key, int) and key < len(args)]

    def run(numbers: list[Tensor]) -> Tensor:
        x = numbers[0]

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, tuple):
                return [fill(part) for part in leaf]
            if isinstance(leaf, _Place):
                return numbers[leaf.index]
            if not isinstance(leaf, _Constant):
                return leaf
            return torch.tensor(leaf.number, dtype=leaf.dtype or x.dtype, device=x.device)

        given, named = fill(args), {key: fill(a) for key, a in kwargs.items()}
        for position in written:  # the numbers given belong to the caller
            given[position] = given[position].clone()
        for key in out:
            named[key] = torch.empty(0, dtype=made or x.dtype, device=x.device)
        return next(t for t in leaves_of(op(*given, **named)) if isinstance(t, Tensor))

    return run


def _constant_of(value: Value) -> _Constant:
    number = constant(value)
    if number is None:  # PReLU's slopes: one each channel, or not there yet
        number = _PRELU_START if value.tensor.is_meta else float(value.tensor.mean())
    return _Constant(number, _dtype(value))


def _dtype(value: Value) -> torch.dtype | None:
    """Of truths and whole numbers, which keep theirs; ``None`` for floats."""
    return None if value.tensor.is_floating_point() else value.tensor.dtype


# ---- what a function is -------------------------------------------------------------------------


@cache
def _known() -> dict[str, Tensor]:
    x = torch.tensor(_GRID, dtype=torch.float64)
    functions: dict[str, Scalar] = {
        "relu": F.relu,
        "relu6": F.relu6,
        "gelu": F.gelu,
        "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
        "silu": F.silu,
        "mish": F.mish,
        "selu": F.selu,
        "elu": F.elu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "hardtanh": F.hardtanh,
        "softplus": F.softplus,
        "softsign": F.softsign,
        "logsigmoid": F.logsigmoid,
        "tanhshrink": F.tanhshrink,
        "scaled_sigmoid": lambda z: 4 * torch.sigmoid(z) - 2,
        "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
        "squared_relu": lambda z: F.relu(z).square(),
        "square": torch.square,
        "abs": torch.abs,
        "exp": torch.exp,
        "sin": torch.sin,
        "cos": torch.cos,
        "erf": torch.erf,
    }
    return {name: function(x) for name, function in functions.items()}


def evaluate(function: Scalar) -> Tensor | None:
    """The function on the grid on which functions are compared; ``None`` if it cannot run there."""
    try:
        return function(torch.tensor(_GRID, dtype=torch.float64)).double()
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def affine(function: Scalar) -> tuple[float, float] | None:
    """Slope and intercept, if the function is a straight line.

    Example:
        >>> affine(lambda x: 3 * x + 1)
        (3.0, 1.0)
        >>> affine(torch.relu) is None
        True
    """
    known = _LINES.get(function, ())
    if not known:
        _LINES[function] = known = (_affine(function),)
    return known[0]


#: What is known of functions, for as long as they live.
_LINES: WeakKeyDictionary[Scalar, tuple[tuple[float, float] | None, ...]] = WeakKeyDictionary()
_NAMES: WeakKeyDictionary[Scalar, str] = WeakKeyDictionary()


def _affine(function: Scalar) -> tuple[float, float] | None:
    y = evaluate(function)
    if y is None or y.shape != (len(_GRID),):
        return None
    x = torch.tensor(_GRID, dtype=torch.float64)
    slope = float((y[-1] - y[0]) / (x[-1] - x[0]))
    intercept = float(y[0] - slope * x[0])
    scale = max(1.0, abs(slope), abs(intercept))
    if bool(((slope * x + intercept - y).abs() < _SAME * scale * abs(x).max()).all()):
        return round(slope, 9), round(intercept, 9)
    return None


def name_of(function: Scalar, operations: list[Operation]) -> str:
    """A name for a function: of the one it equals, else of the operations that compute it."""
    if function not in _NAMES:
        _NAMES[function] = _name_of(function, operations)
    return _NAMES[function]


def _name_of(function: Scalar, operations: list[Operation]) -> str:
    y = evaluate(function)
    if y is not None and y.shape == (len(_GRID),):
        for name, values in _known().items():
            if bool(((y - values).abs() <= _SAME * values.abs().clamp_min(1)).all()):
                return "gelu" if name == "gelu_tanh" else name
        if any(o.name in _PRELU for o in operations):
            return "prelu"
        if any(o.name == "rrelu_with_noise" for o in operations):
            return "rrelu"
        x = torch.tensor(_GRID, dtype=torch.float64)
        slope = float(y[0] / x[0])
        leaky = torch.where(x > 0, x, slope * x)
        if bool(((y - leaky).abs() <= _SAME * 8).all()):
            return "leaky_relu"
    names = list(dict.fromkeys(o.name for o in operations if o.kind != "view"))
    return names[0] if len(names) == 1 else "pointwise(" + ", ".join(names) + ")"
