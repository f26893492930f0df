"""Dropout masks whose samples are drawn without replacement: balanced over the samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError

#: A draw is one 16-bit integer: probabilities are exact to 1/65536, certainties are exact.
_LEVELS = 1 << 16
_LOWEST = -(_LEVELS // 2)

#: Counts up to here fit 16 bits, half of the memory that a pass keeps for each unit.
_LARGEST_SHORT = 32767


def uniform_integers(
    shape: Sequence[int], *, generator: torch.Generator, number: int | None = None
) -> Tensor:
    """16-bit integers, each value equally likely, on the generator's device.

    On a CPU four come from one 64-bit draw, at a quarter of the price, and ``number`` tensors drawn
    together are those that would be drawn one after the other.

    Args:
        shape: of one tensor.
        generator: is moved on.
        number: draw so many at once, in a leading axis; ``None`` draws one, without the axis.

    Returns:
        int16, in [-32768, 32767].

    Example:
        >>> uniform_integers((3, 5), generator=torch.Generator(), number=2).shape
        torch.Size([2, 3, 5])
    """
    leading = () if number is None else (number,)
    if generator.device.type != "cpu":
        return torch.randint(
            _LOWEST, -_LOWEST, (*leading, *shape), dtype=torch.int16,
            device=generator.device, generator=generator,
        )  # fmt: skip
    elements = torch.Size(shape).numel()
    words = torch.randint(
        -(2**63), 2**63 - 1, (*leading, -(-elements // 4)), dtype=torch.int64, generator=generator
    )
    return words.view(torch.int16)[..., :elements].reshape(*leading, *shape)


def fair_mask(uniform: Tensor, keep: float) -> Tensor:
    """An ordinary mask: True with probability ``keep``, every element by itself.

    Args:
        uniform: from :func:`uniform_integers`, any shape.
        keep: in [0, 1].

    Returns:
        bool, the same shape.

    Example:
        >>> fair_mask(torch.tensor([-32768, 0, 32767], dtype=torch.int16), 0.5)
        tensor([ True, False, False])
    """
    return uniform < keep * _LEVELS + _LOWEST


def draw_counts(uniform: Tensor, *, keep: float, samples: int) -> Tensor:
    """In how many of the samples each unit is kept: ``samples * keep``, rounded at random.

    Up or down, such that the expected count is exact (to 1/65536): every mask stays fair.

    Args:
        uniform: from :func:`uniform_integers`, any shape.
        keep: probability that a unit is kept, in [0, 1].
        samples: T >= 1.

    Returns:
        Whole numbers in [0, T], the same shape.

    Example:
        >>> draw_counts(torch.tensor([-32768, 32767], dtype=torch.int16), keep=0.5, samples=5)
        tensor([3, 2], dtype=torch.int16)
    """
    whole = int(samples * keep)
    count = torch.int16 if samples <= _LARGEST_SHORT else torch.int32
    return fair_mask(uniform, samples * keep - whole).to(count).add_(whole)


def next_balanced_(remaining: Tensor, uniform: Tensor, *, left: int) -> Tensor:
    """The next mask of a balanced set; ``remaining`` is counted down.

    A unit that is still to be kept in k of the n samples that are left is kept with probability
    k/n. So each set of k samples is equally likely, and after the last sample every unit was kept
    exactly as often as it was to be. Nothing but the counts is remembered: memory does not grow
    with the samples.

    Args:
        remaining: in how many of the samples left each unit is to be kept; changed in place.
        uniform: from :func:`uniform_integers`, the same shape.
        left: samples left, this one included, >= 1.

    Returns:
        bool, the same shape.

    Source:
        Fan, Muller, Rezucha 1962, Development of sampling plans by using sequential (item by item)
        selection techniques, JASA 57; Knuth, The Art of Computer Programming 2, algorithm 3.4.2 S.

    Example:
        >>> remaining = torch.tensor([2, 0], dtype=torch.int16)
        >>> uniform = torch.tensor([32767, -32768], dtype=torch.int16)
        >>> next_balanced_(remaining, uniform, left=2), remaining
        (tensor([ True, False]), tensor([1, 0], dtype=torch.int16))
    """
    kept = uniform < remaining.float().mul_(_LEVELS / left).add_(_LOWEST)
    remaining.sub_(kept.view(torch.int8))
    return kept


def balanced_masks(
    shape: Sequence[int], *, samples: int, keep: float, generator: torch.Generator
) -> Tensor:
    r"""All masks of a balanced set at once.

    Each unit's T draws are stratified: T equal strata of a uniform number, dealt to the samples by
    a random permutation of the unit's own. Each mask by itself is an ordinary one (units
    independent, kept with probability ``keep``); between two samples a unit's draws have
    correlation :math:`-1/(T-1)`, where T times ``keep`` is whole.

    For a mean over the samples of any function of the masks, with the variance of one sample split
    into parts :math:`\sigma_k^2` by the number k of units that act together (its ANOVA), the
    variance is

    .. math:: \frac{1}{T} \sum_k \sigma_k^2 \left(1 + (T-1) \left(\frac{-1}{T-1}\right)^k\right)

    in place of :math:`\frac{1}{T} \sum_k \sigma_k^2`: what units do on their own is gone, pairs
    count :math:`T/(T-1)`, and that is the most that can be lost.

    Args:
        shape: of one mask.
        samples: T >= 1; T = 1 is an ordinary mask.
        keep: probability that a unit is kept, in [0, 1].
        generator: is moved on.

    Returns:
        bool ``(T, *shape)``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Efron, Stein 1981, The jackknife estimate of variance, Annals of Statistics 9 (the split of
        the variance); McKay, Beckman, Conover 1979, Technometrics 21 (one stratum for each sample).

    Example:
        >>> masks = balanced_masks((3,), samples=10, keep=0.7, generator=torch.Generator())
        >>> masks.sum(0)
        tensor([7, 7, 7])
    """
    check_whole("samples", samples, least=1)
    if not 0 <= keep <= 1:
        raise RecipeError(f"keep must be in [0, 1], got {keep}; it is 1 - p of a dropout.")
    uniform = uniform_integers(shape, generator=generator)
    remaining = draw_counts(uniform, keep=keep, samples=samples)
    masks = [
        next_balanced_(
            remaining, uniform_integers(shape, generator=generator), left=samples - sample
        )
        for sample in range(samples)
    ]
    return torch.stack(masks)
