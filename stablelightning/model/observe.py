"""Statistics of one tensor of a watched step, from a sample of it that bounds what they cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from stablelightning.functional.scores import at_least_single
from stablelightning.functional.signals import (
    DEAD_SHARE,
    SATURATED_SHARE,
    SMALLEST_POWER,
    derivative_at,
    mean_cosines,
    value_and_derivative,
)
from stablelightning.model.inputs import leaves_of

#: Values that are looked at in one tensor. Shares and standard deviations of so many are exact to
#: a percent, and the passes over them stay cheap beside the layer that made them.
SAMPLE_SIZE = 2**16
#: Examples that are kept when a tensor is sampled: cosines and dead units are over examples.
_KEPT_EXAMPLES = 64

#: Where the derivative of a function is looked at for its limits, and nearer to zero for its
#: largest value: an exponential has none further out.
_REACH = 20.0
_NEAR = 4.0
_POINTS = 401
#: A side that is flat from so near to zero on is the off-half of a rectifier, not saturation.
_AT_ZERO = 0.5
#: A function whose derivative falls below this share of the largest on a side is flat there.
_FLAT = 0.01


@dataclass(frozen=True)
class TensorSignal:
    """One activation tensor over the data.

    Args:
        mean: of all values.
        std: root mean square over the units of their standard deviation over the data.
        rms: root mean square of all values.
        mean_share: share of the power that is in the means of the units, in [0, 1].
        cosine: mean cosine between examples; NaN for one example or where rows are not examples.
        largest: largest absolute value.
        quiet: share of the units that do not vary over the data at all, in [0, 1].
        spread: largest standard deviation of a unit over the median one.
        rows: number of data points for each unit, before sampling.
        units: number of units.
        finite: whether every value that was looked at is a finite number.
    """

    mean: float
    std: float
    rms: float
    mean_share: float
    cosine: float
    largest: float
    quiet: float
    spread: float
    rows: int
    units: int
    finite: bool


@dataclass(frozen=True)
class ActivationSignal:
    """What an activation does with what it was given.

    Args:
        name: ``"relu"``, ``"tanh"``, ...
        dead: share of the units without derivative on every input.
        saturated: share of the values where the derivative is below 5% of the largest.
        slope: root mean square derivative.
        largest: the largest derivative that the function has anywhere.
        flat_sides: on how many sides the function is flat in the limit: 0, 1 or 2.
        bounded: whether it is flat on both sides and off on neither: it saturates.
        mean_share: of its output, as in :class:`TensorSignal`.
        positive: share of its output's values that are above zero.
        input_mean: mean of its input.
        input_std: root mean square over units of the input's standard deviation.
        rows: number of data points looked at for each unit.
    """

    name: str
    dead: float
    saturated: float
    slope: float
    largest: float
    flat_sides: int
    bounded: bool
    mean_share: float
    positive: float
    input_mean: float
    input_std: float
    rows: int


def first_tensor(value: object) -> Tensor | None:
    """The first floating tensor of a module's output or input."""
    for leaf in leaves_of(value):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    return None


def unit_dimension(shape: Sequence[int], module: nn.Module | None, units: int | None) -> int:
    """Which dimension holds the units: channels first for images, last for everything else."""
    channels_first = isinstance(module, _ConvNd) or (module is None and len(shape) >= 4)
    preferred = [1, len(shape) - 1] if channels_first else [len(shape) - 1, 1]
    for dimension in preferred:
        if dimension < len(shape) and (units is None or shape[dimension] == units):
            return dimension
    return min(preferred[0], len(shape) - 1)


def sample(values: Tensor, dimension: int) -> Tensor:
    """At most about :data:`SAMPLE_SIZE` values: whole units, evenly spaced data; detached."""
    values = values.detach()
    excess = values.numel() / SAMPLE_SIZE
    if excess <= 1:
        return values
    slices = [slice(None)] * values.ndim
    order = [d for d in range(1, values.ndim) if d != dimension]
    for place, d in enumerate(order):
        step = min(math.ceil(excess ** (1 / (len(order) - place))), values.shape[d])
        slices[d] = slice(None, None, step)
        excess /= step
    if dimension != 0 and values.shape[0] > _KEPT_EXAMPLES:
        step = min(math.ceil(excess), values.shape[0] // _KEPT_EXAMPLES)
        slices[0] = slice(None, None, max(step, 1))
    return values[tuple(slices)]


def observe(values: Tensor, *, dimension: int, examples: int) -> TensorSignal:
    """Statistics of an activation.

    Args:
        values: of any shape, floating.
        dimension: which one holds the units.
        examples: size of the batch; finds the rows that belong to one example.

    Example:
        >>> observe(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), dimension=1, examples=2).mean
        1.0
    """
    return observe_together([given_to(values, dimension=dimension, examples=examples)])[0]


@dataclass(frozen=True)
class Given:
    """What is looked at of one tensor.

    Args:
        part: a sample of it, detached.
        dimension: which one holds the units.
        rows: number of data points for each unit, before sampling.
        by_example: whether the first dimension is that of the examples.
    """

    part: Tensor
    dimension: int
    rows: int
    by_example: bool

    @property
    def units(self) -> int:
        """Number of units."""
        return self.part.shape[self.dimension]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for those that can be stacked."""
        part = self.part
        return part.shape, part.dtype, part.device, self.dimension, self.by_example


def given_to(values: Tensor, *, dimension: int, examples: int) -> Given:
    """The part of an activation that :func:`observe` looks at; arguments as there."""
    values = values if values.ndim else values.reshape(1, 1)
    rows = max(values.numel() // max(values.shape[dimension], 1), 1)
    values, dimension, by_example = _by_example(values, dimension, examples)
    return Given(sample(values, dimension), dimension, rows, by_example)


def observe_together(given: Sequence[Given]) -> list[TensorSignal]:
    """Statistics of several activations of equal keys, at hardly more than the cost of one."""
    first = given[0]
    parts = _stacked([one.part for one in given])
    data = _data_by_units(parts, first.dimension)
    mean = data.mean(1, keepdim=True)
    variance = (data - mean).square().mean(1)  # three times as fast as var, and as exact
    mean = mean.squeeze(1)
    power = variance + mean.square()
    stds = variance.sqrt()
    largest = torch.maximum(data.amax((1, 2)), -data.amin((1, 2)))
    nothing = mean.new_full((len(given),), math.nan)
    numbers = torch.stack(
        [
            mean.mean(1),
            variance.mean(1).sqrt(),
            power.mean(1).sqrt(),
            mean.square().sum(1) / power.sum(1).clamp_min(SMALLEST_POWER),
            mean_cosines(parts.flatten(2)).to(mean.dtype) if first.by_example else nothing,
            largest,
            (variance == 0).to(mean.dtype).mean(1),
            stds.amax(1) / stds.median(1).values.clamp_min(SMALLEST_POWER),
        ],
        1,
    ).tolist()
    return [_tensor_signal(one, row) for one, row in zip(given, numbers, strict=True)]


def _tensor_signal(given: Given, numbers: list[float]) -> TensorSignal:
    average, std, rms, share, cosine, largest, quiet, spread = numbers
    return TensorSignal(
        mean=average,
        std=std,
        rms=rms,
        mean_share=share,
        cosine=cosine,
        largest=largest,
        quiet=quiet,
        spread=spread,
        rows=given.rows,
        units=given.units,
        finite=math.isfinite(rms),
    )


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0)


def _data_by_units(parts: Tensor, dimension: int) -> Tensor:
    """As :func:`as_data_by_units`, of each of several tensors."""
    moved = parts.movedim(dimension + 1, -1)
    return at_least_single(moved.reshape(parts.shape[0], -1, moved.shape[-1]))


def observe_activation(
    name: str,
    function: Callable[[Tensor], Tensor],
    values: Tensor,
    dimension: int,
    *,
    shape: "FunctionShape | None" = None,
) -> ActivationSignal:
    """Statistics of an activation at its own input.

    Args:
        name: of the function.
        function: elementwise.
        values: its input, of any shape.
        dimension: which one holds the units.
        shape: of the function, where it is known already.

    Example:
        >>> observe_activation("relu", torch.relu, torch.tensor([[1.0, -1.0]]), 1).dead
        0.5
    """
    shape = function_shape(function, values) if shape is None else shape
    given = Given(sample(values, dimension), dimension, 1, False)
    return observe_activations(name, function, [given], shape=shape)[0]


def observe_activations(
    name: str,
    function: Callable[[Tensor], Tensor],
    given: Sequence[Given],
    *,
    shape: "FunctionShape",
) -> list[ActivationSignal]:
    """The same for several inputs of one function, of equal keys, at once."""
    largest = shape.largest
    parts = _stacked([one.part for one in given])
    alone = len(given) == 1  # the function may have weights for each unit
    made, slope_at = value_and_derivative(function, parts[0] if alone else parts)
    if alone:
        made, slope_at = made.unsqueeze(0), slope_at.unsqueeze(0)
    data, output, slopes = (_data_by_units(t, given[0].dimension) for t in (parts, made, slope_at))
    mean = output.mean(1).square().sum(1)
    size = slopes.abs()
    numbers = torch.stack(
        [
            (size.amax(1) < DEAD_SHARE * largest).to(size.dtype).mean(1),
            size.lt_(SATURATED_SHARE * largest).mean((1, 2)),  # in place: truths are slow to add
            slopes.square().mean((1, 2)).sqrt(),
            mean / output.square().mean(1).sum(1).clamp_min(SMALLEST_POWER),
            output.clone().gt_(0).mean((1, 2)),
            data.mean((1, 2)),
            (data - data.mean(1, keepdim=True)).square().mean((1, 2)).sqrt(),
        ],
        1,
    ).tolist()
    return [
        ActivationSignal(
            name=name,
            dead=dead,
            saturated=saturated,
            slope=slope,
            largest=largest,
            flat_sides=shape.flat_sides,
            bounded=shape.bounded,
            mean_share=share,
            positive=positive,
            input_mean=input_mean,
            input_std=input_std,
            rows=data.shape[1],
        )
        for dead, saturated, slope, share, positive, input_mean, input_std in numbers
    ]


@dataclass(frozen=True)
class FunctionShape:
    """The largest derivative of a function, and where it goes flat; see ActivationSignal."""

    largest: float = 1.0
    flat_sides: int = 0
    bounded: bool = False


def function_shape(
    function: Callable[[Tensor], Tensor], like: Tensor | None = None
) -> FunctionShape:
    """Look at the derivative of a function between -20 and 20.

    Example:
        >>> function_shape(torch.tanh)
        FunctionShape(largest=1.0, flat_sides=2, bounded=True)
        >>> function_shape(nn.functional.relu6)
        FunctionShape(largest=1.0, flat_sides=2, bounded=False)
    """
    device = None if like is None else like.device
    points = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float32, device=device)
    try:
        slopes = derivative_at(function, points).abs().nan_to_num()
    except RuntimeError:  # a function with weights for its own shape, such as PReLU
        return FunctionShape()
    largest = float(slopes[points.abs() <= _NEAR].max())
    if largest == 0 or math.isinf(largest):
        return FunctionShape()
    steep = points[slopes >= _FLAT * largest].tolist()
    left, right = steep[0], steep[-1]
    flat_left, flat_right = left > -_REACH, right < _REACH
    off = abs(left) < _AT_ZERO or abs(right) < _AT_ZERO
    return FunctionShape(
        largest, int(flat_left) + int(flat_right), flat_left and flat_right and not off
    )


def _by_example(values: Tensor, dimension: int, examples: int) -> tuple[Tensor, int, bool]:
    """Bring the examples to the first dimension: they may be second, or folded with time."""
    if examples < 2 or values.ndim < 2 or values.shape[0] == examples:
        return values, dimension, examples >= 2 and values.ndim >= 2
    if values.ndim > 2 and values.shape[1] == examples and dimension > 1:
        return values.transpose(0, 1), dimension, True
    if values.shape[0] % examples == 0 and dimension > 0:
        return values.reshape(examples, -1, *values.shape[1:]), dimension + 1, True
    return values, dimension, False
