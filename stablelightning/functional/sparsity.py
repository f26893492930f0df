"""Which weights are pruned, and how many: masks by magnitude, the cubic schedule, exact counts.

A mask is a boolean tensor of the weight's shape: ``True`` is kept, ``False`` is pruned, as in
``torch.nn.utils.prune``. Sparsity is the share of weights that are exactly zero.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError

#: Smaller than every magnitude: what was pruned before is pruned first, a kept zero comes after it.
_PRUNED_BEFORE = -1.0


def check_sparsity(sparsity: float, name: str = "sparsity") -> None:
    """Refuse a share of zeros that leaves nothing to train, or asks for nothing.

    Args:
        sparsity: the share, in (0, 1).
        name: what it is called where it was written, for the message.

    Raises:
        RecipeError: it is not a number in (0, 1).

    Example:
        >>> check_sparsity(0.9)
    """
    is_number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not is_number or not 0 < sparsity < 1:
        raise RecipeError(
            f"{name} must be in (0, 1), got {sparsity!r}; it is the share of weights that become "
            "zero: 1 or more leaves no network, and to prune nothing, remove the callback."
        )


def pruned_count(weights: int, sparsity: float) -> int:
    """How many of ``weights`` are zero at a sparsity: the nearest whole number, never all of them.

    The share is taken as it is written (0.29 of 100 is 29), not as the binary number next to it.

    Args:
        weights: how many there are, >= 0.
        sparsity: the share of zeros, in [0, 1).

    Example:
        >>> pruned_count(1000, 0.9), pruned_count(100, 0.29), pruned_count(3, 0.9)
        (900, 29, 2)
    """
    return max(min(round(weights * Fraction(str(sparsity))), weights - 1), 0)


def magnitude_masks(
    weights: Sequence[Tensor], sparsity: float, *, masks: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Keep the weights that are largest in magnitude among all tensors together.

    Exactly ``pruned_count(total, sparsity)`` of them are pruned. Of equal magnitudes those that
    come first are; what ``masks`` prune already stays pruned (and counts).

    Args:
        weights: tensors of any shapes and float dtypes.
        sparsity: the share of all weights that is pruned, in [0, 1).
        masks: what was kept so far, in the weights' shapes; ``None`` is all.

    Returns:
        One boolean mask for each tensor, ``True`` where it is kept, on the tensor's device.

    Raises:
        DataError: a weight is NaN, whose magnitude nobody can compare.

    Source:
        Han, Pool, Tran, Dally 2015, arXiv:1506.02626 (by magnitude).

    Example:
        >>> small, large = torch.tensor([0.1, -0.2]), torch.tensor([3.0, -4.0])
        >>> magnitude_masks([small, large], 0.5)
        [tensor([False, False]), tensor([True, True])]
    """
    if not weights:
        return []
    device = weights[0].device
    scores = torch.cat(
        [
            _magnitudes(weight, None if masks is None else masks[place]).to(device)
            for place, weight in enumerate(weights)
        ]
    )
    kept = _largest(scores, pruned_count(scores.numel(), sparsity))
    parts = kept.split([weight.numel() for weight in weights])
    return [
        part.view(weight.shape).to(weight.device)
        for part, weight in zip(parts, weights, strict=True)
    ]


def adaptive_magnitude_masks(
    weights: Sequence[Tensor], sparsity: float, *, masks: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Keep the weights that are largest in magnitude for their layer, among all tensors together.

    Compared are not magnitudes, which differ between layers by their fan-in alone, but each
    weight's share of what would be left of its tensor: its square over the sum of the squares that
    are no smaller. Layers get shares of their own, and none loses its largest weight while another
    has a smaller one to lose. Otherwise as :func:`magnitude_masks`.

    Args:
        weights: tensors of any shapes and float dtypes.
        sparsity: the share of all weights that is pruned, in [0, 1).
        masks: what was kept so far, in the weights' shapes; ``None`` is all.

    Returns:
        One boolean mask for each tensor, ``True`` where it is kept.

    Raises:
        DataError: a weight is NaN.

    Source:
        Lee, Park, Mo, Ahn, Shin 2021, arXiv:2010.07611 (LAMP).

    Example:
        >>> small, large = torch.tensor([0.1, -0.2]), torch.tensor([3.0, -4.0])
        >>> adaptive_magnitude_masks([small, large], 0.5)
        [tensor([False,  True]), tensor([False,  True])]
    """
    scores = [_shares(weight) for weight in weights]
    return magnitude_masks(scores, sparsity, masks=masks)


def _shares(weight: Tensor) -> Tensor:
    """Of each weight its square over the sum of the squares that are no smaller, in [0, 1]."""
    values = _magnitudes(weight, None).double()
    values = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)  # squares stay finite
    ordered, order = values.square().sort(descending=True, stable=True)
    shares = torch.where(ordered > 0, ordered / ordered.cumsum(0), 0)
    return torch.empty_like(shares).scatter_(0, order, shares).view(weight.shape)


def layer_magnitude_masks(
    weights: Sequence[Tensor], sparsity: float, *, masks: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Keep the weights that are largest in magnitude within each tensor.

    Every tensor is pruned to the same sparsity; no layer can lose all its weights, and none is
    spared. Otherwise as :func:`magnitude_masks`.

    Args:
        weights: tensors of any shapes and float dtypes.
        sparsity: the share of each tensor that is pruned, in [0, 1).
        masks: what was kept so far, in the weights' shapes; ``None`` is all.

    Returns:
        One boolean mask for each tensor, ``True`` where it is kept.

    Raises:
        DataError: a weight is NaN.

    Example:
        >>> small, large = torch.tensor([0.1, -0.2]), torch.tensor([3.0, -4.0])
        >>> layer_magnitude_masks([small, large], 0.5)
        [tensor([False,  True]), tensor([False,  True])]
    """
    return [
        magnitude_masks([weight], sparsity, masks=None if masks is None else [masks[place]])[0]
        for place, weight in enumerate(weights)
    ]


def _magnitudes(weight: Tensor, mask: Tensor | None) -> Tensor:
    values = weight.detach().abs().flatten()
    # Half precision is compared exactly in single, and has no kthvalue on every device.
    values = values if values.dtype == torch.float64 else values.float()
    if values.isnan().any():
        raise DataError(
            "weights must be numbers to be pruned by magnitude, and some are NaN; look for what "
            "made them so, a learning rate that is too high before all."
        )
    return values if mask is None else values.masked_fill(~mask.flatten(), _PRUNED_BEFORE)


def _largest(scores: Tensor, pruned: int) -> Tensor:
    """Keep all but ``pruned`` of them: those under the threshold, and the first that are at it."""
    if pruned == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(pruned).values
    below = scores < threshold
    at = scores == threshold
    still = pruned - below.sum()
    return ~(below | (at & (at.cumsum(0) <= still)))


def cubic_sparsity(step: int, *, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """Sparsity at a step of gradual pruning: fast at first, slow where few weights are left.

    ``final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3`` between the two steps.

    Args:
        step: number of optimizer steps so far.
        begin: step at which pruning begins; ``initial`` up to it.
        end: step at which it ends, >= ``begin``; ``final`` from it on.
        final: sparsity at the end, in [0, 1).
        initial: sparsity at the beginning, in [0, 1).

    Source:
        Zhu, Gupta 2017, arXiv:1710.01878, equation 1.

    Example:
        >>> [cubic_sparsity(step, begin=0, end=100, final=0.9) for step in (0, 50, 100, 101)]
        [0.0, 0.7875, 0.9, 0.9]
    """
    if step >= end:
        return final
    if step <= begin:
        return initial
    left = 1 - (step - begin) / (end - begin)
    return final + (initial - final) * left**3


def zero_count(tensor: Tensor) -> int:
    """How many entries are exactly zero (of either sign).

    Args:
        tensor: of any shape.

    Example:
        >>> zero_count(torch.tensor([0.0, -0.0, 1e-30]))
        2
    """
    return tensor.numel() - int(tensor.detach().count_nonzero())


#: What each bit of a byte counts.
_BITS = tuple(1 << place for place in range(8))


def pack_mask(mask: Tensor) -> Tensor:
    """Keep a boolean mask in bits, an eighth of its size.

    Args:
        mask: boolean, of any shape.

    Returns:
        ``uint8`` on the CPU, one byte for eight entries, the last one filled up with zeros.

    Example:
        >>> pack_mask(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    flat = mask.detach().flatten().cpu()
    filled = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % len(_BITS)))
    bits = torch.tensor(_BITS, dtype=torch.uint8)
    return (filled.view(-1, len(_BITS)) * bits).sum(1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Make a boolean mask of its bits again.

    Args:
        packed: what :func:`pack_mask` gave.
        shape: of the mask.

    Raises:
        DataError: there are not as many bits as the shape needs.

    Example:
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    entries = torch.Size(shape).numel()
    if packed.numel() != -(-entries // len(_BITS)):
        raise DataError(
            f"a mask of shape {tuple(shape)} must have {-(-entries // len(_BITS))} bytes, got "
            f"{packed.numel()}; it was packed for another weight."
        )
    bits = torch.tensor(_BITS, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] & bits).ne(0).flatten()[:entries].view(tuple(shape))
