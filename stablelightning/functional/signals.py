"""How a signal fares in a network, read from activations and gradients: tensors in, numbers out.

Activations are given as ``(data, units)``: one row for each example (and position, for images and
sequences), one column for each unit or channel. What varies over the rows is signal; what is the
same in all of them is not, however large it is.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.scores import at_least_single

#: A derivative below this share of the largest one the function has counts as none: such a unit
#: learns twenty times more slowly than one in the middle of the function. For tanh it is reached
#: at 2.18 from the origin, for the sigmoid at 4.36.
SATURATED_SHARE = 0.05

#: A derivative below this share of the largest counts as zero: at such a rate a unit needs a
#: thousand steps for what others do in one. Reached by SiLU at -9, by ELU at -6.9.
DEAD_SHARE = 1e-3

#: Products of equal rows may differ by the order of summation, by less than this of the largest.
SAME_PRODUCT = 1e-5

#: A norm or a power below this counts as this, so that the ratio of two silent signals is 0 and not
#: NaN. It is far below the square of what float32 resolves beside 1.
SMALLEST_POWER = 1e-30


def as_data_by_units(values: Tensor, unit_dimension: int) -> Tensor:
    """Bring ``values`` to ``(data, units)``: every dimension but that of the units counts as data.

    Args:
        values: any shape with at least one dimension.
        unit_dimension: which dimension holds the units: 1 for images, -1 for vectors and tokens.

    Example:
        >>> as_data_by_units(torch.zeros(8, 3, 4, 4), 1).shape
        torch.Size([128, 3])
    """
    moved = values.movedim(unit_dimension, -1)
    return at_least_single(moved.reshape(-1, moved.shape[-1]))


def unit_std(values: Tensor) -> Tensor:
    """Standard deviation over the data, for each unit: what tells one input from another.

    The spread over *all* values would also count constant differences between units, such as those
    of the biases, and does not fall when a deep network maps every input to the same point.

    Args:
        values: ``(data, units)``.

    Returns:
        ``(units,)``, >= 0, in the units of the values; 0 where there is one row.

    Example:
        >>> unit_std(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([1., 0.])
    """
    _require_rows(values)
    return at_least_single(values).std(0, correction=0)


def root_mean_square(values: Tensor) -> Tensor:
    """Square root of the mean square of all values, a scalar; 0 for no values.

    Example:
        >>> root_mean_square(torch.tensor([3.0, 4.0, 0.0, 0.0]))
        tensor(2.5000)
    """
    if values.numel() == 0:
        return values.new_zeros(())
    norm: Tensor = torch.linalg.vector_norm(at_least_single(values))
    return norm / math.sqrt(values.numel())


def mean_cosine(rows: Tensor) -> Tensor:
    """Mean cosine between the vectors of different inputs.

    1 means that the network no longer tells its inputs apart; independent inputs of zero mean give
    0. Equal in cost to one pass over the rows, since the sum over all pairs is the squared norm of
    the sum of the unit vectors.

    Args:
        rows: ``(inputs, features)``, two inputs or more.

    Returns:
        A scalar in [-1, 1]; silent rows (all zeros) have cosine 0 with every other.

    Raises:
        DataError: fewer than two inputs.

    Source:
        Poole et al. 2016, arXiv:1606.05340 (the correlation map of deep networks).

    Example:
        >>> round(mean_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])).item(), 3)
        0.471
    """
    count = rows.shape[0]
    if rows.ndim != 2 or count < 2:
        raise DataError(
            f"a mean cosine needs rows (inputs, features) of two inputs or more, got shape "
            f"{tuple(rows.shape)}; give a batch of several inputs."
        )
    return mean_cosines(rows.unsqueeze(0))[0]


def mean_cosines(rows: Tensor) -> Tensor:
    """The same of several tensors of one shape, ``(tensors, inputs, features)``, at once.

    Returns:
        ``(tensors,)``, in [-1, 1].

    Example:
        >>> mean_cosines(torch.ones(3, 2, 4))
        tensor([1., 1., 1.])
    """
    count = rows.shape[1]
    rows = at_least_single(rows)
    norms = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    directions = rows / norms.clamp_min(SMALLEST_POWER)  # zero for silent rows
    own = (norms > 0).sum((1, 2))  # the square of a direction is 1
    pairs: Tensor = directions.sum(1).square().sum(1) - own
    return (pairs / (count * (count - 1))).clamp(-1.0, 1.0)


def dead_units(derivatives: Tensor, largest: float = 1.0) -> Tensor:
    """Which units have no derivative for any input: no example can move them.

    A healthy ReLU layer is half zeros on each input; a unit is dead only if it is zero on all.
    Smooth functions never reach zero; below a thousandth of the largest derivative counts.

    Args:
        derivatives: of the activation at its input, ``(data, units)``.
        largest: the largest derivative that the function has anywhere, > 0.

    Returns:
        Booleans ``(units,)``.

    Example:
        >>> dead_units(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        tensor([False,  True])
    """
    _require_rows(derivatives)
    return (derivatives.abs() < DEAD_SHARE * largest).all(0)


def saturated_share(derivatives: Tensor, largest: float) -> Tensor:
    """Share of the values whose derivative is almost gone, below 5% of the largest.

    Args:
        derivatives: of the activation at its input, any shape.
        largest: the largest derivative that the function has anywhere, > 0: 1 for tanh, 1/4 for
            the sigmoid.

    Returns:
        A scalar in [0, 1].

    Example:
        >>> z = torch.tensor([0.0, 1.0, 3.0, -9.0])
        >>> saturated_share(1 - z.tanh() ** 2, largest=1.0)
        tensor(0.5000)
    """
    return (derivatives.abs() < SATURATED_SHARE * largest).float().mean()


def derivative_at(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Derivative of an elementwise function at each point, same shape, detached.

    Example:
        >>> derivative_at(torch.relu, torch.tensor([-1.0, 2.0]))
        tensor([0., 1.])
    """
    return value_and_derivative(function, points)[1]


def value_and_derivative(
    function: Callable[[Tensor], Tensor], points: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and derivative of an elementwise function at each point, same shape, detached.

    Example:
        >>> value_and_derivative(torch.square, torch.tensor([3.0]))
        (tensor([9.]), tensor([6.]))
    """
    # Hooks of a checkpoint around this must not count what is saved here.
    unhooked = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
    with torch.enable_grad(), unhooked:
        leaf = points.detach().clone().requires_grad_()
        value = function(leaf.clone())  # a copy: the function may write in place
        if value.grad_fn is None:
            return value.detach(), torch.zeros_like(points)
        (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    return value.detach(), torch.zeros_like(points) if slope is None else slope.detach()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def mean_share(values: Tensor) -> Tensor:
    """Share of the power of ``values`` that is in the means of the units: 0 is zero-centred.

    0.32 after a ReLU of a standard normal input, 0.85 after its sigmoid. Where the inputs of a
    layer all have one sign, the gradients of a unit's weights do too, and descent must zig-zag.

    Args:
        values: ``(data, units)``.

    Returns:
        A scalar in [0, 1]: sum of squared means over sum of mean squares; 0 for silence.

    Source:
        LeCun, Bottou, Orr, Müller 1998, "Efficient BackProp", section 4.3.

    Example:
        >>> mean_share(torch.tensor([[1.0, -1.0], [3.0, 1.0]]))
        tensor(0.6667)
    """
    _require_rows(values)
    values = at_least_single(values)
    power = values.square().mean(0).sum()
    return (values.mean(0).square().sum() / power.clamp_min(SMALLEST_POWER)).clamp(max=1.0)


def log_slope(values: Sequence[float], depths: Sequence[float]) -> float:
    """Slope of the natural logarithm of ``values`` over depth, by least squares.

    0 is an isometric network, ln 2 = 0.69 one that doubles the signal at each layer.

    Args:
        values: one for each layer; those that are not positive and finite are left out.
        depths: where the layers are; the same length.

    Returns:
        Per unit of depth; NaN where fewer than two different depths remain.

    Example:
        >>> round(log_slope([1.0, 2.0, 4.0], [0, 1, 2]), 4)
        0.6931
    """
    pairs = [
        (float(d), math.log(v))
        for v, d in zip(values, depths, strict=True)
        if v > 0 and math.isfinite(v)
    ]
    if len({depth for depth, _ in pairs}) < 2:
        return math.nan
    middle = sum(d for d, _ in pairs) / len(pairs)
    height = sum(h for _, h in pairs) / len(pairs)
    covariance = sum((d - middle) * (h - height) for d, h in pairs)
    return covariance / sum((d - middle) ** 2 for d, _ in pairs)


def underflow_share(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Share of the gradient's values that are not zero and would be zero in ``dtype``.

    Args:
        gradient: in a wider dtype than the one in question, or scaled and divided again.
        dtype: a floating dtype; half its smallest subnormal number rounds to zero (3e-8 in
            float16).

    Returns:
        A scalar in [0, 1], of the values that are not zero; 0 where all are.

    Source:
        Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

    Example:
        >>> underflow_share(torch.tensor([1.0, 1e-9, 0.0]), torch.float16)
        tensor(0.5000)
    """
    alive = gradient != 0
    lost = alive & (gradient.to(dtype) == 0)
    return lost.sum() / alive.sum().clamp_min(1)


def duplicate_units(rows: Tensor) -> Tensor:
    """Which units are copies of an earlier one: equal weights stay equal for ever.

    Args:
        rows: the incoming weights of the units, ``(units, weights)``.

    Returns:
        Booleans ``(units,)``; of a group of equal rows all but one are marked.

    Example:
        >>> duplicate_units(torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0]]))
        tensor([False, False,  True])
    """
    rows = at_least_single(rows)
    # Equal rows have equal products with any vector. Sorting these brings copies side by side, at
    # the cost of one product instead of a sort of whole rows.
    products, order = (rows @ _direction_for(rows)).sort(stable=True)
    near = (products.diff() <= SAME_PRODUCT * products.abs().max()).nonzero()[:, 0]
    again = (rows[order[near + 1]] == rows[order[near]]).all(1)
    copies = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
    copies[order[near + 1]] = again
    return copies


def duplicate_shares(matrices: Tensor) -> Tensor:
    """Share of the units that are copies of another, of several matrices of one shape at once.

    Args:
        matrices: the incoming weights of the units, ``(matrices, units, weights)``.

    Returns:
        ``(matrices,)``, in [0, 1].

    Example:
        >>> duplicate_shares(torch.ones(1, 4, 3))
        tensor([0.7500])
    """
    if len(matrices) == 1:
        return duplicate_units(matrices[0]).float().mean().unsqueeze(0)
    # Where no two products are alike no two rows are: so it is in most small matrices.
    direction = _direction_for(matrices)
    products = (matrices @ direction).sort(dim=1).values
    near = products.diff(dim=1) <= SAME_PRODUCT * products.abs().amax(1, keepdim=True)
    shares = matrices.new_zeros(len(matrices))
    for place in near.any(1).nonzero()[:, 0].tolist():
        shares[place] = duplicate_units(matrices[place]).float().mean()
    return shares


def _direction_for(rows: Tensor) -> Tensor:
    size = rows.shape[-1]
    return torch.linspace(1.0, 2.0, size, device=rows.device, dtype=rows.dtype).cos()


def sigmoid_explosion_window(weight: float) -> float:
    """Width of the range of inputs in which a sigmoid unit lengthens the gradient that passes it.

    The gradient grows where ``|w| * s'(w x + b) > 1``. With ``s'(u) = 1 / (2 + 2 cosh u)`` that is
    ``cosh(w x + b) < |w| / 2 - 1``: an interval of x of width ``(2 / |w|) arccosh(|w| / 2 - 1)``,
    wherever the bias puts it. It is empty unless ``|w| > 4``, and never wider than 0.45 (at
    ``|w|`` = 6.9): a stack of sigmoids can hardly explode, and nearly always vanishes.

    Args:
        weight: the weight between two sigmoid units, any sign.

    Returns:
        The width in units of the input; 0 where the window is empty.

    Example:
        >>> round(sigmoid_explosion_window(6.9), 2), sigmoid_explosion_window(4.0)
        (0.45, 0.0)
    """
    size = abs(weight)
    return 2 / size * math.acosh(size / 2 - 1) if size > 4 else 0.0


def _require_rows(values: Tensor) -> None:
    if values.ndim != 2 or values.shape[0] < 1:
        raise DataError(
            f"activations must be (data, units) with at least one row, got {tuple(values.shape)}; "
            "as_data_by_units brings them there."
        )
