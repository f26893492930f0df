"""Contrastive learning: two views of a row attract each other, all other rows repel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from stablelightning.errors import DataError, RecipeError

#: A shorter vector has no direction that could be trusted: it is taken for zero, which is alike to
#: nothing and gets no gradient. Dividing by its length would multiply the gradient without bound.
_SHORTEST = 1e-8


def nt_xent(
    first: Tensor, second: Tensor, *, temperature: float = 0.5, gather: bool = True
) -> Tensor:
    r"""Normalized temperature-scaled cross entropy of paired embeddings.

    Each of the 2N embeddings has one partner, the other view of its row, and 2N - 2 others. Its
    loss is the cross entropy of finding the partner by cosine similarity:

    .. math:: -\log \frac{e^{s(i, p(i)) / \tau}}{\sum_{k \ne i} e^{s(i, k) / \tau}}

    Computed in float32 or wider whatever the inputs are, also under autocast, and through the
    log-sum-exp, so that a small temperature overflows nothing.

    Args:
        first: embeddings of one view, ``(N, D)``; of any length, they are normalized here.
        second: embeddings of the other view, row by row of the same originals, ``(N, D)``.
        temperature: > 0; the smaller, the more the nearest of the others count.
        gather: on several processes, the others are those of all of them: the mean over processes
            of this loss, and the gradients that ``DistributedDataParallel`` averages, are those of
            one process that holds the whole batch. Every process must then call it, with or
            without gradients. On one process it makes no difference.

    Returns:
        Scalar, the mean over the 2N embeddings, in nats; ``log(2N - 1)`` where all are alike.

    Raises:
        RecipeError: ``temperature`` is not positive.
        DataError: the shapes differ or are not ``(N, D)``, or there is only one row in all.

    Source:
        Chen et al. 2020, arXiv:2002.05709, equation 1.

    Example:
        >>> views = torch.eye(4)
        >>> nt_xent(views, views, temperature=0.1) < nt_xent(views, views.roll(1, 0))
        tensor(True)
    """
    logits, partners, share = partner_logits(first, second, temperature=temperature, gather=gather)
    return F.cross_entropy(logits, partners) * share


def partner_logits(
    first: Tensor, second: Tensor, *, temperature: float = 0.5, gather: bool = True
) -> tuple[Tensor, Tensor, float]:
    """Scores of every other embedding for being the partner, as :func:`nt_xent` takes them.

    Args:
        first: see :func:`nt_xent`.
        second: see :func:`nt_xent`.
        temperature: see :func:`nt_xent`.
        gather: see :func:`nt_xent`.

    Returns:
        Logits ``(2N, M)`` in float32 or wider, for M embeddings of all processes, minus infinity
        for an embedding itself; the place of each partner ``(2N,)`` in ``[0, M)``; and what a mean
        over the 2N is to be multiplied by, so that the mean over processes is that over all M
        (other than 1 only where processes have batches of different sizes).

    Raises:
        RecipeError: ``temperature`` is not positive.
        DataError: the shapes differ or are not ``(N, D)``, or there is only one row in all.

    Example:
        >>> logits, partners, _ = partner_logits(torch.eye(2), torch.eye(2), temperature=1.0)
        >>> logits[0], partners
        (tensor([-inf, 0., 1., 0.]), tensor([2, 3, 0, 1]))
    """
    if not temperature > 0:
        raise RecipeError(f"temperature must be > 0, got {temperature}; 0.5 is usual, 0.1 is hard.")
    _check_pairs(first, second)
    mine = torch.stack([_directions(first), _directions(second)])
    everyone, sizes, rank = _of_all_processes(mine) if gather else (mine, [len(first)], 0)
    rows, total = sizes[rank], sum(sizes)
    if total < 2:
        raise DataError(
            "a contrast needs at least two rows in a batch, got one: there is nothing to tell it "
            "from; use larger batches, and drop_last=True where the last one may be short."
        )
    # Autocast would take the product in half precision, where a small temperature drowns in noise.
    with torch.autocast(mine.device.type, enabled=False):
        logits = mine.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature
    place = torch.arange(rows, device=mine.device) + sum(sizes[:rank])
    own, partners = torch.cat([place, place + total]), torch.cat([place + total, place])
    itself = F.one_hot(own, 2 * total).bool()
    return logits.masked_fill(itself, -torch.inf), partners, rows * len(sizes) / total


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance between the two views of a row, on the unit sphere.

    Args:
        first: embeddings of one view, ``(N, D)``; they are normalized here.
        second: embeddings of the other view, ``(N, D)``.

    Returns:
        Scalar in [0, 4]; 0 where the views of each row agree.

    Raises:
        DataError: the shapes differ or are not ``(N, D)``.

    Source:
        Wang, Isola 2020, arXiv:2005.10242, equation 7 with exponent 2.

    Example:
        >>> alignment(torch.eye(2), 3 * torch.eye(2))
        tensor(0.)
    """
    _check_pairs(first, second)
    return (_directions(first) - _directions(second)).square().sum(1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    """How evenly embeddings spread over the unit sphere: the logarithm of a Gaussian potential.

    Args:
        embeddings: of different rows, ``(N, D)`` with N >= 2; they are normalized here.

    Returns:
        Scalar, at most 0; 0 where all have collapsed into one point, about -4 where many rows
        spread evenly over many dimensions.

    Raises:
        DataError: the shape is not ``(N, D)`` with two rows or more.

    Source:
        Wang, Isola 2020, arXiv:2005.10242, equation 8 with t = 2.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise DataError(
            "uniformity needs embeddings (N, D) of at least two rows, got shape "
            f"{tuple(embeddings.shape)}; flatten each row to a vector."
        )
    squared = torch.pdist(_directions(embeddings)).square()
    return torch.logsumexp(-2 * squared, 0) - torch.log(squared.new_tensor(squared.numel()))


def _check_pairs(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 2:
        raise DataError(
            "the two views must have embeddings (N, D) of one shape, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}; flatten each row to a vector."
        )


def _directions(embeddings: Tensor) -> Tensor:
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    directed = length > _SHORTEST
    # The inner choice keeps the gradient of a zero vector's length, which is none, out of it.
    return torch.where(directed, wide / torch.where(directed, length, 1.0), 0.0)


# ---- several processes --------------------------------------------------------------------------


def _of_all_processes(mine: Tensor) -> tuple[Tensor, list[int], int]:
    """Both views of every process, ``(2, rows of all, D)``; rows of each; the own rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return mine, [mine.shape[1]], 0
    world = distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.long, device=mine.device) for _ in range(world)]
    distributed.all_gather(counts, torch.tensor([mine.shape[1]], device=mine.device))
    sizes = [int(count) for count in torch.cat(counts)]
    # Collectives take tensors of one shape only.
    padded = F.pad(mine, (0, 0, 0, max(sizes) - mine.shape[1]))
    parts = _Gather.apply(padded)
    everyone = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)
    return everyone, sizes, distributed.get_rank()


class _Gather(torch.autograd.Function):
    """Gather from all processes; what each of them wants changed in a part goes back to its owner.

    The sum over processes, and not their mean: ``DistributedDataParallel`` takes the mean later.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        together = torch.stack(gradients)
        distributed.all_reduce(together)
        return together[distributed.get_rank()]
