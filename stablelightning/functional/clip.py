"""Clipping of gradients: one rule, one function; tensors in, the same tensors out, made smaller.

All gradients are changed in place. What is not finite is left as it is, so that a scaler or a guard
still sees it, and never makes others so. On a CPU nothing is written where nothing is to be
clipped; elsewhere nothing waits for the device, and the factor is then exactly 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from stablelightning.errors import RecipeError

#: The weights of a unit count as at least this large: one that starts at zero would have a bound of
#: zero, and stay there for good. From the paper of adaptive clipping.
ADAPTIVE_EPSILON = 1e-3

#: Added to what a gradient's norm or spread is divided by. A gradient of rounding errors would be
#: blown up to the size of all others; this is far below what training lives on.
NORMALIZE_EPSILON = 1e-8

#: Numbers smaller than this many bytes are added up in float32.
_FULL_BYTES = 4


@torch.no_grad()
def clip_by_global_norm_(
    grads: Sequence[Tensor],
    max_norm: float,
    *,
    norm_type: float = 2.0,
    total_norm: Tensor | None = None,
) -> Tensor:
    r"""Scale every gradient by one common factor so that their joint norm is at most ``max_norm``.

    The direction stays: :math:`g \leftarrow g \min(1, c / \lVert g \rVert)`.

    Args:
        grads: any shapes; changed in place. If any is not finite, all are left as they are.
        max_norm: largest joint norm, in gradient units; > 0.
        norm_type: the p of the norm, >= 1; ``math.inf`` for the largest absolute value.
        total_norm: their joint norm, if it is known; a scalar.

    Returns:
        The joint norm before clipping, a scalar on the first gradient's device. Where the powers of
        finite numbers overflow (beyond 1e19 in float32), the gradients are clipped all the same.

    Raises:
        RecipeError: ``max_norm`` is not positive, or ``norm_type`` is below 1.

    Source:
        Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.

    Example:
        >>> gradient = torch.tensor([3.0, 4.0])
        >>> clip_by_global_norm_([gradient], max_norm=1.0)
        tensor(5.)
        >>> gradient
        tensor([0.6000, 0.8000])
    """
    check_threshold("max_norm", max_norm)
    check_norm_type(norm_type)
    if total_norm is not None and total_norm.is_cpu and total_norm <= max_norm:
        return total_norm  # nothing is read, let alone written
    dense = [_stored(g) for g in grads]
    norm = joint_norm(dense, norm_type) if total_norm is None else total_norm
    if not dense:
        return norm
    if norm.device.type == "cpu":
        _scale_on_cpu_(dense, norm, max_norm, norm_type)
    else:
        factor = _factor(dense, norm, max_norm, norm_type)
        for device in {g.device for g in dense}:  # one, unless the model is spread over several
            torch._foreach_mul_([g for g in dense if g.device == device], factor.to(device))
    return norm


def joint_norm(grads: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all gradients as one vector.

    Args:
        grads: any shapes, dense or sparse; those of half precision are summed up in float32.
        norm_type: the p of the norm, >= 1; ``math.inf`` for the largest absolute value.

    Returns:
        A scalar on the first gradient's device; 0 where there is none. Nothing waits for a device.

    Example:
        >>> joint_norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    values = [_wide(g.coalesce().values() if g.is_sparse else g) for g in grads]
    return whole(get_total_norm(values, norm_type))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie in shards on several devices, as one; every process must ask.

    Args:
        tensor: an ordinary one, which is returned as it is, or a ``DTensor``.

    Example:
        >>> whole(torch.tensor(5.0))
        tensor(5.)
    """
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _scale_on_cpu_(dense: list[Tensor], norm: Tensor, max_norm: float, norm_type: float) -> None:
    total = float(norm)
    if total == math.inf:  # of finite numbers, perhaps, whose powers overflowed
        total = float(joint_norm([g.double() for g in dense], norm_type))
    if max_norm < total < math.inf:  # false for NaN
        torch._foreach_mul_(dense, max_norm / total)


def _factor(dense: list[Tensor], norm: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """What to multiply by, without asking the device; exactly 1 where nothing is to be done."""
    numbers = sum(g.numel() for g in dense)
    largest = joint_norm(dense, math.inf)
    # A bound that cannot overflow, for where the norm did.
    bound = largest * (1.0 if norm_type == math.inf else numbers ** (1 / norm_type))
    safe = torch.where(norm.isfinite(), norm, bound)
    return torch.where(safe.isfinite(), max_norm / safe, 1.0).clamp(max=1.0)


@torch.no_grad()
def clip_by_value_(grads: Sequence[Tensor], max_value: float) -> Tensor:
    r"""Cut every entry of every gradient off at ``-max_value`` and ``max_value``.

    The direction changes: large entries lose, small ones keep. :math:`g \leftarrow \max(-c,
    \min(c, g))`.

    Args:
        grads: any shapes; changed in place. Entries that are not finite are left as they are.
        max_value: largest absolute value, in gradient units; > 0.

    Returns:
        The largest absolute value before clipping, a scalar on the first gradient's device.

    Raises:
        RecipeError: ``max_value`` is not positive.

    Source:
        Mikolov 2012, Statistical language models based on neural networks, section 3.2.2.

    Example:
        >>> gradient = torch.tensor([-3.0, 0.5])
        >>> clip_by_value_([gradient], max_value=1.0)
        tensor(3.)
        >>> gradient
        tensor([-1.0000,  0.5000])
    """
    check_threshold("max_value", max_value)
    dense = [_stored(g) for g in grads]
    largest = joint_norm(dense, math.inf)
    on_cpu = largest.device.type == "cpu"
    if on_cpu and float(largest) <= max_value:
        return largest
    if on_cpu and math.isfinite(float(largest)):
        torch._foreach_clamp_min_(dense, -max_value)
        torch._foreach_clamp_max_(dense, max_value)
    else:  # a clamp would turn an infinity into a number, and hide it
        for g in dense:
            g.copy_(torch.where(g.isinf(), g, g.clamp(-max_value, max_value)))
    return largest


@torch.no_grad()
def clip_by_adaptive_norm_(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    clipping: float = 0.01,
    *,
    epsilon: float = ADAPTIVE_EPSILON,
    unit_dims: Sequence[int] | None = None,
) -> Tensor:
    r"""Bound the gradient of every unit by a share of the norm of the unit's weights.

    A unit is a row of a weight (an output neuron, or an output channel); a vector (biases, gains)
    is one unit. :math:`g_u \leftarrow g_u \min(1, \lambda \max(\lVert w_u \rVert, \epsilon) /
    \lVert g_u \rVert)`.

    Args:
        grads: any shapes; changed in place. Units whose gradient is not finite are left as they
            are.
        weights: what each is the gradient of.
        clipping: :math:`\lambda`, largest norm of a unit's gradient as a share of the norm of its
            weights; > 0. Smaller for larger batches.
        epsilon: the least that a unit's weights count for, so that what starts at zero can move;
            > 0.
        unit_dims: the dimension that counts the units of each; the first, unless told otherwise.

    Returns:
        How many units were clipped, a scalar on the first gradient's device.

    Raises:
        RecipeError: ``clipping`` or ``epsilon`` is not positive.

    Source:
        Brock, De, Smith, Simonyan 2021, arXiv:2102.06171, equation 3.

    Example:
        >>> weight, gradient = torch.eye(2), torch.tensor([[3.0, 4.0], [0.001, 0.0]])
        >>> clip_by_adaptive_norm_([gradient], [weight], clipping=0.1)
        tensor(1)
        >>> gradient
        tensor([[0.0600, 0.0800],
                [0.0010, 0.0000]])
    """
    check_threshold("clipping", clipping)
    check_threshold("epsilon", epsilon)
    dims = [0] * len(grads) if unit_dims is None else unit_dims
    counts = []
    for g, w, dim in zip(grads, weights, dims, strict=True):
        if g.is_sparse:  # rows of an embedding that were used
            g, w = _stored(g), w[g.coalesce().indices()[0]]
        bound = clipping * _unit_norms(w, dim).clamp(min=epsilon)
        norms = _unit_norms(g, dim)
        too_long = (norms > bound) & norms.isfinite()
        counts.append(too_long.sum())
        if g.device.type != "cpu" or counts[-1]:
            g.mul_(torch.where(too_long, bound / norms, 1.0).to(g.dtype))
    return _sum(counts)


def _unit_norms(tensor: Tensor, dim: int) -> Tensor:
    """L2 norm of every unit, in a shape that multiplies the tensor."""
    wide = _wide(tensor.detach())
    others = [d for d in range(wide.ndim) if d != dim] if wide.ndim > 1 else None
    norms: Tensor = torch.linalg.vector_norm(wide, dim=others, keepdim=others is not None)
    return norms


@torch.no_grad()
def scale_to_unit_norm_(grads: Sequence[Tensor]) -> None:
    r"""Divide every gradient by its own L2 norm: what is left of it is its direction.

    :math:`g_\ell \leftarrow g_\ell / (\lVert g_\ell \rVert + \epsilon)`, tensor by tensor. The
    learning rate is then the length of each tensor's step.

    Args:
        grads: any shapes; changed in place. Zeros stay zeros; a gradient that is not finite is left
            as it is.

    Source:
        Yu, Huang, Lin, Salakhutdinov, Carbonell 2017, arXiv:1707.04822.

    Example:
        >>> gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.01])]
        >>> scale_to_unit_norm_(gradients)
        >>> gradients
        [tensor([0.6000, 0.8000]), tensor([1.0000])]
    """
    for g in map(_stored, grads):
        norm = torch.linalg.vector_norm(_wide(g))
        g.mul_(_finite_or_one(1 / (norm + NORMALIZE_EPSILON), norm).to(g.dtype))


@torch.no_grad()
def standardize_(grads: Sequence[Tensor]) -> None:
    r"""Bring every gradient to zero mean and unit variance over its own entries.

    :math:`g_\ell \leftarrow (g_\ell - \bar g_\ell) / (s_\ell + \epsilon)`. It is no direction of
    descent in general: what all entries of a tensor have in common is taken away, and a tensor of
    one entry, which would be left with nothing, is scaled to unit norm instead.

    Args:
        grads: any shapes; changed in place, sparse ones over the entries that they hold. Zeros stay
            zeros; a gradient that is not finite is left as it is.

    Source:
        Yong, Huang, Hua, Zhang 2020, arXiv:2004.01461 (the mean); the variance is that of the
        entries, with divisor n.

    Example:
        >>> gradient = torch.tensor([1.0, 3.0])
        >>> standardize_([gradient])
        >>> gradient
        tensor([-1.,  1.])
    """
    for g in map(_stored, grads):
        if g.numel() <= 1:
            scale_to_unit_norm_([g])
            continue
        variance, mean = torch.var_mean(_wide(g), correction=0)
        factor = _finite_or_one(1 / (variance.sqrt() + NORMALIZE_EPSILON), variance)
        shift = torch.where(variance.isfinite(), mean, 0.0)
        g.sub_(shift.to(g.dtype)).mul_(factor.to(g.dtype))


def check_threshold(name: str, value: float) -> None:
    """Check that a threshold is a number above zero.

    Raises:
        RecipeError: it is not.

    Example:
        >>> check_threshold("max_norm", 1.0)
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise RecipeError(
            f"{name} must be a finite number > 0, got {value!r}; to stop clipping, remove the "
            "callback."
        )


def check_norm_type(norm_type: float) -> None:
    """Check that there is a norm with this p.

    Raises:
        RecipeError: it is below 1, or no number.

    Example:
        >>> check_norm_type(math.inf)
    """
    number = isinstance(norm_type, int | float) and not isinstance(norm_type, bool)
    if not number or not norm_type >= 1:
        raise RecipeError(
            f"norm_type must be a number >= 1 or infinity, got {norm_type!r}; 2 is usual."
        )


def _finite_or_one(factor: Tensor, measured: Tensor) -> Tensor:
    return torch.where(measured.isfinite(), factor, 1.0)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < _FULL_BYTES else tensor


def _stored(grad: Tensor) -> Tensor:
    """The numbers that a gradient holds, to be written; of a sparse one each entry once."""
    if not grad.is_sparse:
        return grad
    if not grad.is_coalesced():
        grad.copy_(grad.coalesce())
    return grad._values()


def _sum(counts: list[Tensor]) -> Tensor:
    if not counts:
        return torch.zeros((), dtype=torch.long)
    return torch.stack([count.to(counts[0].device) for count in counts]).sum()
