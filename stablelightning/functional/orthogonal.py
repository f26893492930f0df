"""Orthogonal weights: plain, in the centre of a convolution's kernel, and mirrored.

A product of orthogonal matrices is orthogonal however many there are, where a product of random
ones stretches some directions by orders of magnitude and loses the others.
"""

import math

import torch
from torch import Tensor, nn

from stablelightning.errors import RecipeError
from stablelightning.functional.initialize import Layout

_PLAIN = Layout()


@torch.no_grad()
def orthogonal_(weight: Tensor, *, gain: float = 1.0, layout: Layout = _PLAIN) -> Tensor:
    """Fill with an orthogonal matrix, or one for each group, scaled to keep the signal's size.

    Where there are more outputs than inputs the columns are orthogonal, and scaled by
    ``sqrt(outputs / inputs)``, so that the mean square over the *units* is kept, as with weights of
    ``std = gain / sqrt(fan_in)``; ``torch.nn.init.orthogonal_`` keeps the sum instead. A kernel is
    taken as one matrix ``(outputs, inputs * kernel)``; for a stack of convolutions see
    :func:`delta_orthogonal_`.

    Args:
        weight: two or more axes; changed in place.
        gain: >= 0.
        layout: of a convolution.

    Source:
        Saxe, McClelland, Ganguli 2014, arXiv:1312.6120.

    Example:
        >>> weight = orthogonal_(torch.empty(3, 3, dtype=torch.float64))
        >>> torch.allclose(weight @ weight.T, torch.eye(3, dtype=torch.float64))
        True
    """
    blocks = _blocks(weight, layout)
    groups, outputs, inputs, kernel = blocks.shape
    for group in range(groups):
        # The kernel entries that one output meets are fewer by the stride, if transposed.
        met = layout.fans(weight).fan_in / (inputs * kernel)
        matrix = _semi_orthogonal(weight, outputs, inputs * kernel)
        blocks[group] = matrix.reshape(outputs, inputs, kernel) / math.sqrt(met)
    return _write_(weight, blocks * gain, layout)


@torch.no_grad()
def delta_orthogonal_(weight: Tensor, *, gain: float = 1.0, layout: Layout = _PLAIN) -> Tensor:
    """Fill a kernel with an orthogonal matrix at its centre and zeros around it.

    The convolution begins as one orthogonal map of the channels, pixel by pixel: norms are kept
    exactly, at the border too, where a full kernel reads padding (over 30 layers on small images
    that alone costs two orders of magnitude).

    Args:
        weight: two or more axes; with two, the same as :func:`orthogonal_`. Changed in place.
        gain: >= 0.
        layout: of the convolution.

    Source:
        Xiao et al. 2018, arXiv:1806.05393, algorithm 1.

    Example:
        >>> kernel = delta_orthogonal_(torch.empty(4, 4, 3, 3))
        >>> kernel.count_nonzero().item(), kernel[..., 1, 1].square().sum().item().__round__(4)
        (16, 4.0)
    """
    blocks = _blocks(weight, layout)
    groups, outputs, inputs, _ = blocks.shape
    blocks.zero_()
    for group in range(groups):
        matrix = _semi_orthogonal(weight, outputs, inputs)
        blocks[group, :, :, _centre(weight)] = matrix * gain
    return _write_(weight, blocks, layout)


@torch.no_grad()
def mirrored_orthogonal_(
    weight: Tensor,
    *,
    gain: float = 1.0,
    reads_mirrored: bool = True,
    makes_mirrored: bool = True,
    centre: bool = True,
    transposed: bool = False,
) -> Tensor:
    """Fill so that a deep stack of ReLU-like layers is a linear, orthogonal map at the start.

    With ``W = [[A, -A], [-A, A]]`` the pre-activations are ``(h, -h)``, and as ``f(h) - f(-h)`` is
    a multiple of ``h`` (ReLU, leaky ReLU, GELU, SiLU, hardswish), the next layer computes ``A h``:
    exactly linear, however deep. Inputs do not come to look alike over depth, and gradients neither
    vanish nor explode. The first layer of a stack reads the plain input, ``W = [A; -A]``; the last
    makes plain outputs, ``W = [A, -A]``. A kernel gets this at its centre, zeros around it.
    Functions for which ``f(h) - f(-h)`` is only nearly straight (Mish, ELU, SELU) gain as well.

    An odd width has one unit without a partner: it is drawn like the others, and the next layer
    reads it with weight zero at the start. All stays exact, and the unit learns.

    Args:
        weight: ``(out, in, ...)``; two or more axes; changed in place.
        gain: factor of the linear map; ``1 / s`` where ``f(x) - f(-x) = s x``.
        reads_mirrored: the input comes in mirrored halves, through such a function.
        makes_mirrored: the output shall come in mirrored halves.
        centre: of a kernel, fill the centre only; otherwise all of it, as one matrix: right
            where the stride leaves pixels out that no centre meets.
        transposed: the weight is ``(in, out, ...)``.

    Raises:
        RecipeError: an axis that is to be halved has one entry only.

    Source:
        Balduzzi et al. 2017, arXiv:1702.08591, section 4 ("looks linear"); the kernel's centre from
        Xiao et al. 2018, arXiv:1806.05393.

    Example:
        >>> x, first, then, last = torch.randn(5, 3), *(torch.empty(6, n) for n in (3, 6, 6))
        >>> _ = mirrored_orthogonal_(first, reads_mirrored=False), mirrored_orthogonal_(then)
        >>> _ = mirrored_orthogonal_(last[:3], makes_mirrored=False)
        >>> y = torch.relu(torch.relu(x @ first.T) @ then.T) @ last[:3].T
        >>> torch.allclose(y.norm(dim=1), x.norm(dim=1))
        True
    """
    layout = Layout(transposed=transposed)
    blocks = _blocks(weight, layout)
    _, outputs, inputs, kernel = blocks.shape
    if (makes_mirrored and outputs < 2) or (reads_mirrored and inputs < 2):
        raise RecipeError(
            f"mirrored halves need two units or more, got a weight with {outputs} outputs and "
            f"{inputs} inputs; use orthogonal_ for this layer."
        )
    rows = outputs // 2 if makes_mirrored else outputs
    columns = inputs // 2 if reads_mirrored else inputs
    entries = 1 if centre else kernel
    drawn = gain * _semi_orthogonal(weight, rows, columns * entries)
    filled = torch.cat([drawn, -drawn]) if makes_mirrored else drawn
    if makes_mirrored and outputs % 2:
        alone = gain * _semi_orthogonal(weight, 1, columns * entries)
        filled = torch.cat([filled, alone])
    filled = filled.reshape(outputs, columns, entries)
    if reads_mirrored:
        filled = torch.cat([filled, -filled, filled.new_zeros(outputs, inputs % 2, entries)], 1)
    blocks.zero_()
    blocks[0, :, :, _centre(weight) if centre else slice(None)] = (
        filled[..., 0] if centre else filled
    )
    return _write_(weight, blocks, layout)


def _semi_orthogonal(like: Tensor, rows: int, columns: int) -> Tensor:
    """Rows of length 1 on average, so that a unit's mean square is that of its inputs."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    matrix = nn.init.orthogonal_(torch.empty(rows, columns, dtype=dtype, device=like.device))
    return matrix * math.sqrt(max(1.0, rows / columns))


def _blocks(weight: Tensor, layout: Layout) -> Tensor:
    """A new tensor in which a weight can be made: (groups, outputs, inputs, kernel entries)."""
    if weight.ndim < 2:
        raise RecipeError(
            f"an orthogonal weight needs two axes or more, got shape {tuple(weight.shape)}."
        )
    first, second = weight.shape[0] // layout.groups, weight.shape[1]
    sides = (second, first) if layout.transposed else (first, second)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    kernel = math.prod(weight.shape[2:])
    return torch.empty(layout.groups, *sides, kernel, dtype=dtype, device=weight.device)


def _write_(weight: Tensor, blocks: Tensor, layout: Layout) -> Tensor:
    ordered = blocks.transpose(1, 2) if layout.transposed else blocks
    return weight.copy_(ordered.reshape(weight.shape))


def _centre(weight: Tensor) -> int:
    """Position of the centre in the flattened kernel; of an even side, the entry after it."""
    position = 0
    for side in weight.shape[2:]:
        position = position * side + side // 2
    return position
