"""Penalties on the size of weights, the steps that minimize them exactly, and max-norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelightning.errors import RecipeError


def l1_penalty(weights: Sequence[Tensor], strength: float | Tensor) -> Tensor:
    r"""The sum of absolute values, :math:`\lambda \sum |w|`, which favours few weights.

    As a term of a loss its gradient pushes weights across zero and back, and none ever rests there;
    :func:`soft_threshold_` is the step that leaves exact zeros.

    Args:
        weights: any shapes, one device; at least one.
        strength: the factor :math:`\lambda`, >= 0, in units of the loss per unit of weight.

    Returns:
        A scalar through which gradients flow; sums of half precision are taken in float32.

    Raises:
        RecipeError: ``strength`` is negative.

    Source:
        Tibshirani 1996, Regression Shrinkage and Selection via the Lasso, JRSS B 58(1).

    Example:
        >>> l1_penalty([torch.tensor([3.0, -4.0])], strength=0.5)
        tensor(3.5000)
    """
    _check_strength(strength)
    return _total([_wide(w).abs().sum() for w in weights]) * strength


def l2_penalty(weights: Sequence[Tensor], strength: float | Tensor) -> Tensor:
    r"""Half the sum of squares, :math:`\frac{\lambda}{2} \sum w^2`, which favours small weights.

    Half, so that its gradient is :math:`\lambda w`, which is what optimizers call weight decay.

    Args:
        weights: any shapes, one device; at least one.
        strength: the factor :math:`\lambda`, >= 0.

    Returns:
        A scalar through which gradients flow; sums of half precision are taken in float32.

    Raises:
        RecipeError: ``strength`` is negative.

    Source:
        Hoerl, Kennard 1970, Ridge Regression, Technometrics 12(1); Krogh, Hertz 1991, A Simple
        Weight Decay Can Improve Generalization, NeurIPS.

    Example:
        >>> l2_penalty([torch.tensor([3.0, -4.0])], strength=0.5)
        tensor(6.2500)
    """
    _check_strength(strength)
    return _total([_wide(w).square().sum() for w in weights]) * (strength / 2)


def elastic_penalty(
    weights: Sequence[Tensor], *, l1_strength: float | Tensor, l2_strength: float | Tensor
) -> Tensor:
    r"""The elastic net, :math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2`.

    Of weights that do the same it keeps all and shares, where L1 alone picks one.

    Args:
        weights: any shapes, one device; at least one.
        l1_strength: the factor :math:`\lambda_1`, >= 0.
        l2_strength: the factor :math:`\lambda_2`, >= 0.

    Returns:
        A scalar through which gradients flow.

    Raises:
        RecipeError: a strength is negative.

    Source:
        Zou, Hastie 2005, Regularization and Variable Selection via the Elastic Net, JRSS B 67(2).

    Example:
        >>> elastic_penalty([torch.tensor([3.0, -4.0])], l1_strength=0.5, l2_strength=0.5)
        tensor(9.7500)
    """
    return l1_penalty(weights, l1_strength) + l2_penalty(weights, l2_strength)


def soft_threshold_(weight: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Move every entry towards zero by ``threshold``, and stop there: the proximal step of L1.

    :math:`\arg\min_v \frac{1}{2}(v - w)^2 + t |v|`, solved exactly: what is no larger than the
    threshold becomes zero, to the bit.

    Args:
        weight: any shape; changed in place. NaN and infinities stay what they are.
        threshold: :math:`t` >= 0, the learning rate times the penalty's strength; a tensor costs no
            synchronisation.

    Returns:
        ``weight`` itself.

    Raises:
        RecipeError: ``threshold`` is negative.

    Source:
        Daubechies, Defrise, De Mol 2004, arXiv:math/0307152, section 2; Parikh, Boyd 2014, Proximal
        Algorithms, section 6.5.2.

    Example:
        >>> soft_threshold_(torch.tensor([3.0, -0.5, 0.2, -2.0]), 0.5)
        tensor([ 2.5000,  0.0000,  0.0000, -1.5000])
    """
    _check_strength(threshold, name="threshold")
    # w - clamp(w): two kernels, a threshold that may stay on the device, and x - x is exactly zero.
    return weight.sub_(weight.clamp(min=-threshold, max=threshold))  # type: ignore[arg-type]


def shrink_(weight: Tensor, amount: float | Tensor) -> Tensor:
    r"""Divide by ``1 + amount``: the proximal step of L2.

    :math:`\arg\min_v \frac{1}{2}(v - w)^2 + \frac{a}{2} v^2`, solved exactly. To first order it is
    the :math:`(1 - a) w` of AdamW; unlike that it cannot overshoot, however large the amount.

    Args:
        weight: any shape; changed in place.
        amount: :math:`a` >= 0, the learning rate times the penalty's strength.

    Returns:
        ``weight`` itself.

    Raises:
        RecipeError: ``amount`` is negative.

    Source:
        Parikh, Boyd 2014, Proximal Algorithms, section 6.1.1; Loshchilov, Hutter 2019,
        arXiv:1711.05101 (decay that is decoupled from the gradient).

    Example:
        >>> shrink_(torch.tensor([3.0, -1.5]), 0.5)
        tensor([ 2., -1.])
    """
    _check_strength(amount, name="amount")
    return weight.div_(1 + amount)


def start_penalty(
    weights: Sequence[Tensor], starts: Sequence[Tensor], strength: float | Tensor
) -> Tensor:
    r"""Half the sum of squared distances from where weights began (L2-SP), times a factor.

    :math:`\frac{\lambda}{2} \sum (w - w_0)^2`, which favours what was learned before.

    Args:
        weights: any shapes, one device; at least one.
        starts: of each weight, the value :math:`w_0` that it began at.
        strength: the factor :math:`\lambda`, >= 0.

    Returns:
        A scalar through which gradients flow; sums of half precision are taken in float32.

    Raises:
        RecipeError: ``strength`` is negative.

    Source:
        Li, Grandvalet, Davoine 2018, arXiv:1802.01483, equation 3.

    Example:
        >>> start_penalty([torch.tensor([3.0, -4.0])], [torch.tensor([1.0, -4.0])], strength=0.5)
        tensor(1.)
    """
    pairs = zip(weights, starts, strict=True)
    return l2_penalty([_wide(weight) - _wide(start) for weight, start in pairs], strength)


def shrink_towards_(weight: Tensor, start: Tensor, amount: float | Tensor) -> Tensor:
    r"""Divide the distance from a start by ``1 + amount``: the proximal step of L2-SP.

    :math:`\arg\min_v \frac{1}{2}(v - w)^2 + \frac{a}{2} (v - w_0)^2`, solved exactly. It cannot
    overshoot, however large the amount, and a weight at its start stays there to the bit.

    Args:
        weight: any shape; changed in place.
        start: :math:`w_0`, of the same shape.
        amount: :math:`a` >= 0, the learning rate times the penalty's strength; a tensor costs no
            synchronisation.

    Returns:
        ``weight`` itself.

    Raises:
        RecipeError: ``amount`` is negative.

    Source:
        Li, Grandvalet, Davoine 2018, arXiv:1802.01483; Parikh, Boyd 2014, Proximal Algorithms,
        sections 2.2 and 6.1.1 (the step, and its translation).

    Example:
        >>> shrink_towards_(torch.tensor([3.0, -2.0]), torch.tensor([1.0, -2.0]), 1.0)
        tensor([ 2., -2.])
    """
    _check_strength(amount, name="amount")
    return weight.lerp_(start, amount / (1 + amount))


def unit_norms(weight: Tensor, *, unit_axes: Sequence[int] = (0,)) -> Tensor:
    """L2 norm of the incoming weights of every unit.

    Args:
        weight: such as ``(units, inputs)`` of a linear layer, ``(channels, inputs, ...)`` of a
            convolution.
        unit_axes: the axes that number the units; the norm is over all others. 1 for the weight of
            a transposed convolution, ``(inputs, channels, ...)``; 0 and 2 where that is split by
            groups, ``(groups, inputs, channels, ...)``.

    Returns:
        The norms, their shape that of the unit axes; of half precision taken in float32.

    Example:
        >>> unit_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.])
    """
    axes = {axis % weight.ndim for axis in unit_axes}
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    wide = _wide(weight)
    return torch.linalg.vector_norm(wide, dim=others) if others else wide.abs()


def max_norm_(weight: Tensor, max_norm: float, *, unit_axes: Sequence[int] = (0,)) -> Tensor:
    """Scale the incoming weights of each unit so that their L2 norm is at most ``max_norm``.

    The projection onto that ball: units within it are not touched, to the bit.

    Args:
        weight: as for :func:`unit_norms`; changed in place. A unit with a weight that is not finite
            stays as it is.
        max_norm: the largest norm, > 0; 3 to 4 is usual beside dropout.
        unit_axes: the axes that number the units.

    Returns:
        ``weight`` itself.

    Raises:
        RecipeError: ``max_norm`` is not positive.

    Source:
        Srebro, Rennie, Jaakkola 2004, Maximum-Margin Matrix Factorization, NeurIPS; Hinton et al.
        2012, arXiv:1207.0580; Srivastava et al. 2014, Dropout, JMLR 15, section 5.1.

    Example:
        >>> max_norm_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), max_norm=2.5)
        tensor([[1.5000, 2.0000],
                [0.0000, 1.0000]])
    """
    if not max_norm > 0:
        raise RecipeError(f"max_norm must be > 0, got {max_norm}; at 0 nothing could be learned.")
    norms = unit_norms(weight, unit_axes=unit_axes)
    too_long = (norms > max_norm) & norms.isfinite()
    factors = torch.where(too_long, max_norm / norms, 1.0).to(weight.dtype)
    axes = {axis % weight.ndim for axis in unit_axes}
    return weight.mul_(factors.view([n if i in axes else 1 for i, n in enumerate(weight.shape)]))


def _check_strength(value: float | Tensor, *, name: str = "strength") -> None:
    # A tensor is the caller's own product: looking at it would wait for the device.
    if not isinstance(value, Tensor) and not value >= 0:
        raise RecipeError(f"{name} must be >= 0, got {value}.")


def _wide(weight: Tensor) -> Tensor:
    """At least float32: a sum of many squares leaves the range of half precision."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum() if parts else torch.zeros(())
