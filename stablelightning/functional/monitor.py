"""Signals of a training step: norms, changes of weights, and what units do over the data.

Nothing here waits for a device: numbers stay tensors until somebody reads them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelightning.errors import ModelError
from stablelightning.functional.signals import DEAD_SHARE, SATURATED_SHARE

#: So many entries of a weight stand for all of it. The norm of a change is then right to 1 % where
#: entries change like normal numbers, to 2 % where their squares are as uneven as Laplace's
#: (sqrt((kurtosis - 1) / (4 n))), for 16 KiB a weight.
SAMPLED_ENTRIES = 4096

# Functions are looked at from -30 to 30, where softplus and the sigmoid have long been flat; their
# steepest slope is sought near zero, because exp and x^2 have none.
_REACH, _STEP, _NEAR = 30.0, 0.01, 4.0

# A flat half that begins this close to zero is the off-half of a rectifier, where half of all
# values of a healthy layer lie: that is no saturation.
_AT_ZERO = 0.5


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of every tensor, in a few launches for all of them.

    Args:
        tensors: any shapes, also sparse ones; norms of half precision are accumulated in float32.

    Returns:
        ``(n,)`` in float32, or float64 where a tensor is; on the device of the first tensor.

    Example:
        >>> tensor_norms([torch.tensor([3.0, 4.0]), torch.eye(4)])
        tensor([5., 2.])
    """
    if not tensors:
        return torch.zeros(0)
    dense = [_values(tensor.detach()) for tensor in tensors]
    kinds = {t.dtype for t in dense}
    half = kinds <= {torch.float16, torch.bfloat16}
    if not half and kinds & {torch.float16, torch.bfloat16}:
        dense = [t.float() if t.dtype.itemsize < 4 else t for t in dense]
    norms = torch._foreach_norm(dense, 2, torch.float32 if half else None)
    wide = torch.float64 if torch.float64 in kinds else torch.float32
    return torch.stack([norm.to(dense[0].device, wide) for norm in norms])


def _values(tensor: Tensor) -> Tensor:
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def sampled_entries(tensors: Sequence[Tensor], *, most: int = SAMPLED_ENTRIES) -> Tensor:
    """Copy up to ``most`` entries of every tensor: always the same ones, evenly spread.

    The step from one entry to the next has no divisor in common with any dimension, so that no row,
    column or position in a kernel is visited more often than another. No random number is drawn,
    and no index is kept.

    Args:
        tensors: dense, any shapes, one or more.
        most: entries of one tensor, >= 1; smaller tensors are copied whole.

    Returns:
        The entries of all tensors in one row, on the device of the first; at least float32.

    Example:
        >>> sampled_entries([torch.arange(10.0), torch.arange(3.0)], most=4)
        tensor([0., 3., 6., 9., 0., 1., 2.])
    """
    device = tensors[0].device
    # reshape copies a channels_last kernel: its entries must come in the order of their indices, or
    # a change of memory format would look like a change of the weights.
    parts = [t.detach().reshape(-1)[:: _stride(t, most)].to(device) for t in tensors]
    row = torch.cat(parts)
    return row.to(torch.promote_types(row.dtype, torch.float32))


def sampled_sizes(tensors: Sequence[Tensor], *, most: int = SAMPLED_ENTRIES) -> list[int]:
    """How many entries :func:`sampled_entries` copies of every tensor.

    Example:
        >>> sampled_sizes([torch.arange(10.0), torch.arange(3.0)], most=4)
        [4, 3]
    """
    return [-(-t.numel() // _stride(t, most)) for t in tensors]


def _stride(tensor: Tensor, most: int) -> int:
    stride = max(-(-tensor.numel() // most), 1)
    sizes = tensor.shape if tensor.ndim > 1 and stride > 1 else ()
    while any(math.gcd(stride, size) > 1 for size in sizes):
        stride += 1
    return stride


def piece_norms(row: Tensor, sizes: Sequence[int]) -> Tensor:
    """L2 norms of the consecutive pieces of a row.

    Args:
        row: ``(sum of sizes,)``.
        sizes: length of every piece.

    Returns:
        ``(len(sizes),)``, float32 or wider.

    Example:
        >>> piece_norms(torch.tensor([3.0, 4.0, 2.0]), [2, 1])
        tensor([5., 2.])
    """
    return tensor_norms(row.split(list(sizes)))


# ---- units --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlatEnds:
    """Where a function of one number stops to change, on either side.

    Args:
        dead_below: below it the slope is under a thousandth of the steepest; -inf if nowhere.
        dead_above: above it likewise; inf if nowhere.
        saturated_below: below it the slope is under 5% of the steepest, and it is not the off-half
            of a rectifier; -inf if nowhere.
        saturated_above: above it likewise; inf if nowhere.
    """

    dead_below: float = -math.inf
    dead_above: float = math.inf
    saturated_below: float = -math.inf
    saturated_above: float = math.inf

    @property
    def can_die(self) -> bool:
        """Whether a unit can be where its function is flat for every input."""
        return math.isfinite(self.dead_below) or math.isfinite(self.dead_above)

    @property
    def can_saturate(self) -> bool:
        """Whether the function has a flat end away from zero."""
        return math.isfinite(self.saturated_below) or math.isfinite(self.saturated_above)


def flat_ends(function: Callable[[Tensor], Tensor]) -> FlatEnds:
    """Find where an activation function is flat, from its values alone.

    Dead and saturated then cost a comparison with two numbers, whatever the function is.

    Args:
        function: elementwise, takes float64; asked at points from -30 to 30.

    Raises:
        ModelError: the function is not elementwise.

    Example:
        >>> flat_ends(torch.relu).dead_below, flat_ends(torch.relu).can_saturate
        (0.0, False)
        >>> ends = flat_ends(torch.tanh)
        >>> round(ends.saturated_above, 1), round(ends.dead_above, 1)
        (2.2, 4.2)
        >>> flat_ends(torch.nn.LeakyReLU(0.01)).can_die
        False
    """
    count = round(_REACH / _STEP)
    points = torch.arange(-count, count + 1, dtype=torch.float64) * _STEP
    with torch.no_grad():
        values = function(points.clone())  # a copy: the function may write in place
    if values.shape != points.shape:
        raise ModelError(
            f"an activation must be elementwise, and of {tuple(points.shape)} numbers this one "
            f"made {tuple(values.shape)}; functions that mix units have no flat ends."
        )
    slopes = values.diff().abs() / _STEP
    near = points[:-1].abs() <= _NEAR
    steepest = slopes[near].max()
    below, above = _ends(points, slopes >= DEAD_SHARE * steepest)
    soft_below, soft_above = _ends(points, slopes >= SATURATED_SHARE * steepest)
    return FlatEnds(
        dead_below=below,
        dead_above=above,
        saturated_below=soft_below if soft_below < -_AT_ZERO else -math.inf,
        saturated_above=soft_above if soft_above > _AT_ZERO else math.inf,
    )


def _ends(points: Tensor, steep: Tensor) -> tuple[float, float]:
    where = steep.nonzero().ravel()
    if not len(where):  # a constant has no ends, only a middle
        return -math.inf, math.inf
    first, last = int(where[0]), int(where[-1])
    below = float(points[first]) if first > 0 else -math.inf
    above = float(points[last + 1]) if last < len(steep) - 1 else math.inf
    return below, above


@dataclass(frozen=True)
class UnitStatistics:
    """What the units of a layer did over some data; all tensors ``(units,)``, float32.

    Args:
        rows: number of examples.
        values: number of values of each unit (examples times positions).
        mean: of each unit's outputs.
        variance: of each unit's outputs over the data, biased.
        largest: largest input of the activation function, per unit; the mean where no end of the
            function makes it matter.
        smallest: smallest one, likewise.
        saturated: share of all inputs that lie in a flat end away from zero; a scalar.
    """

    rows: int
    values: int
    mean: Tensor
    variance: Tensor
    largest: Tensor
    smallest: Tensor
    saturated: Tensor

    def merged(self, other: "UnitStatistics") -> "UnitStatistics":
        """Statistics of both data sets together.

        Source:
            Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
            sample variances".
        """
        total = self.values + other.values
        share = other.values / total if total else 0.0
        delta = other.mean - self.mean
        return UnitStatistics(
            rows=self.rows + other.rows,
            values=total,
            mean=self.mean + delta * share,
            variance=self.variance
            + (other.variance - self.variance) * share
            + delta.square() * (share * (1 - share)),
            largest=torch.maximum(self.largest, other.largest),
            smallest=torch.minimum(self.smallest, other.smallest),
            saturated=self.saturated + (other.saturated - self.saturated) * share,
        )


def unit_statistics(
    output: Tensor, *, unit_dimension: int, inputs: Tensor | None = None, ends: FlatEnds
) -> UnitStatistics:
    """Statistics of a layer's units over one batch.

    Args:
        output: of the activation function; at least one dimension, the first one the examples.
        unit_dimension: which dimension holds the units: 1 for images, -1 for vectors and tokens.
        inputs: of the activation function, same shape; ``None`` is ``output``.
        ends: where the function is flat.

    Example:
        >>> z = torch.tensor([[1.0, -1.0], [3.0, -2.0]])
        >>> seen = unit_statistics(
        ...     z.relu(), unit_dimension=1, inputs=z, ends=flat_ends(torch.relu))
        >>> seen.mean, seen.largest
        (tensor([2., 0.]), tensor([ 3., -1.]))
    """
    output = output.detach()
    before = output if inputs is None else inputs.detach()
    total, squares = _sums(output, unit_dimension)
    values = output.numel() // max(len(total), 1)
    mean = total / max(values, 1)
    # Two sums cost a fraction of Welford's update (torch.var_mean). They lose digits where the mean
    # is hundreds of times the spread, and such a unit is told apart by its mean already.
    variance = (squares / max(values, 1) - mean.square()).clamp_(min=0)
    smallest = largest = mean
    if math.isfinite(ends.dead_below):
        largest = _extreme(before, unit_dimension, torch.amax)
    if math.isfinite(ends.dead_above):
        smallest = _extreme(before, unit_dimension, torch.amin)
    saturated = mean.new_zeros(())
    if ends.can_saturate:
        outside = (before < ends.saturated_below) | (before > ends.saturated_above)
        saturated = outside.sum() / max(outside.numel(), 1)
    rows = output.shape[0] if output.ndim > 1 else 1
    return UnitStatistics(rows, values, mean, variance, largest, smallest, saturated)


def _sums(values: Tensor, unit_dimension: int) -> tuple[Tensor, Tensor]:
    values = values.float()
    if unit_dimension in (-1, values.ndim - 1):
        flat = values.reshape(-1, values.shape[-1])
        return flat.sum(0), flat.square().sum(0)
    inner = values.flatten(unit_dimension + 1)  # first where memory is contiguous: ten times faster
    over = tuple(range(unit_dimension))
    return inner.sum(-1).sum(over), torch.linalg.vector_norm(inner, dim=-1).square().sum(over)


def _extreme(values: Tensor, unit_dimension: int, extreme: Callable[..., Tensor]) -> Tensor:
    if unit_dimension in (-1, values.ndim - 1):
        return extreme(values.reshape(-1, values.shape[-1]), 0).float()
    inner = extreme(values.flatten(unit_dimension + 1), -1)
    return extreme(inner, tuple(range(unit_dimension))).float()


def still_rows_(
    counts: Tensor,
    rows: int | Tensor,
    *,
    largest: Tensor,
    smallest: Tensor,
    below: float | Tensor,
    above: float | Tensor,
) -> Tensor:
    """Count for how many examples each unit has not left a flat end of its function.

    A unit whose count has reached the length of a window is dead over that window. In this way
    windows can overlap without any of the data being kept.

    Args:
        counts: ``(units,)`` integers, until now; changed in place.
        rows: number of examples since then.
        largest: ``(units,)``, largest input of each unit's function over these examples.
        smallest: smallest one.
        below: where the functions are flat, :attr:`FlatEnds.dead_below`.
        above: :attr:`FlatEnds.dead_above`.

    Returns:
        ``counts``.

    Example:
        >>> z = torch.tensor([[1.0, -1.0], [3.0, -2.0]])
        >>> still_rows_(torch.tensor([5, 5]), len(z), largest=z.amax(0), smallest=z.amin(0),
        ...     below=0.0, above=math.inf)
        tensor([0, 7])
    """
    still = (largest <= below) | (smallest >= above)
    return counts.add_(rows).mul_(still)
