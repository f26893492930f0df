"""Putting an affine map of the channels into the weights of the layer beside it."""

import torch
from torch import Tensor

from stablelightning.errors import DataError


def norm_as_affine(
    mean: Tensor, variance: Tensor, *, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval does to each channel: ``scale * x + shift``.

    Args:
        mean: running mean ``(C,)``.
        variance: running variance ``(C,)``, >= 0.
        weight: gamma ``(C,)``, ``None`` for 1.
        bias: beta ``(C,)``, ``None`` for 0.
        eps: what the norm adds to the variance, >= 0.

    Returns:
        ``(scale, shift)``, each ``(C,)`` in float64 on the CPU, so that the product with a weight
        is rounded once.

    Source:
        Ioffe, Szegedy 2015, arXiv:1502.03167, algorithm 2.

    Example:
        >>> one = torch.ones(1)
        >>> norm_as_affine(2 * one, 4 * one, weight=3 * one, bias=one, eps=0.0)
        (tensor([1.5000], dtype=torch.float64), tensor([-2.], dtype=torch.float64))
    """
    scale = (_exact(variance) + eps).rsqrt()
    if weight is not None:
        scale = scale * _exact(weight)
    shift = -_exact(mean) * scale
    return scale, shift if bias is None else shift + _exact(bias)


def _exact(tensor: Tensor) -> Tensor:
    """In double precision on the CPU, as not every device has it."""
    return tensor.detach().cpu().double()


def with_scaled_outputs(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """The weights of a layer whose outputs are then scaled and shifted.

    Args:
        weight: ``(O, I)`` of a linear layer, ``(O, I / groups, ...)`` of a convolution,
            ``(I, O / groups, ...)`` of a transposed one.
        bias: ``(O,)`` or ``None``.
        scale: ``(O,)``.
        shift: ``(O,)``.
        transposed: whether it is a transposed convolution.
        groups: of the convolution, >= 1.

    Returns:
        Weight and bias, in the weight's dtype and on its device.

    Raises:
        DataError: ``scale`` does not have one number for each output.

    Source:
        Jacob et al. 2018, arXiv:1712.05877, section 3.2.

    Example:
        >>> two, one = torch.full((1,), 2.0), torch.ones(1)
        >>> with_scaled_outputs(torch.ones(1, 3), None, two, one)
        (tensor([[2., 2., 2.]]), tensor([1.]))
    """
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    _check(scale, outputs, "output")
    exact, scale, shift = _exact(weight), _exact(scale), _exact(shift)
    if transposed:
        factors = scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = exact.unflatten(0, (groups, -1)) * factors
    else:
        scaled = exact * scale.view(-1, *[1] * (weight.ndim - 1))
    moved = shift if bias is None else _exact(bias) * scale + shift
    return scaled.reshape(weight.shape).to(weight), moved.to(weight)


def with_scaled_inputs(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """The weights of a layer whose inputs were scaled and shifted before.

    Right for a convolution where every output reads the shift through the whole kernel: no zero
    padding, and for a transposed one a kernel and a stride of 1; or where the shift is 0.

    Args:
        weight: see :func:`with_scaled_outputs`.
        bias: ``(O,)`` or ``None``.
        scale: ``(I,)``.
        shift: ``(I,)``.
        transposed: whether it is a transposed convolution.
        groups: of the convolution, >= 1.

    Returns:
        Weight and bias, in the weight's dtype and on its device.

    Raises:
        DataError: ``scale`` does not have one number for each input.

    Example:
        >>> with_scaled_inputs(torch.ones(1, 2), None, torch.tensor([1.0, 2.0]), torch.ones(2))
        (tensor([[1., 2.]]), tensor([2.]))
    """
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    _check(scale, inputs, "input")
    exact = _exact(weight).unflatten(0, (groups, -1))  # (groups, O or I, I or O, ...)
    own, others = (1, 2) if transposed else (2, 1)
    shape = [groups, 1, 1, *[1] * (weight.ndim - 2)]
    shape[own] = -1
    factors, added = _exact(scale).view(shape), _exact(shift).view(shape)
    everywhere = [axis for axis in range(1, exact.ndim) if axis != others]
    moved = (exact * added).sum(everywhere).flatten()
    if bias is not None:
        moved = moved + _exact(bias)
    return (exact * factors).reshape(weight.shape).to(weight), moved.to(weight)


def _check(scale: Tensor, channels: int, what: str) -> None:
    if scale.shape != (channels,):
        raise DataError(
            f"scale must have one number for each of the {channels} {what} channels, got shape "
            f"{tuple(scale.shape)}; give what norm_as_affine returns."
        )


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest absolute value of the reference.

    NaN and infinite entries must be the same in both, and are not compared further.

    Returns:
        At least 0; infinity where shapes differ or other entries are not finite.

    Example:
        >>> relative_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
        0.2
    """
    if value.shape != reference.shape:
        return float("inf")
    # Of whole numbers only the shape is held against them: an argmax may turn on a tie.
    if not reference.numel() or not reference.is_floating_point():
        return 0.0
    a, b = _exact(value), _exact(reference)
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return float("inf")
    difference, size = (a - b)[finite], b[finite]
    if not size.numel():
        return 0.0
    largest, scale = float(difference.abs().max()), float(size.abs().max())
    if largest == 0.0:
        return 0.0
    return largest / scale if scale > 0 else float("inf")
