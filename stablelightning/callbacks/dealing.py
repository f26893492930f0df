"""Dealing rows out in disjoint parts of equal make-up, the same ones whatever their order."""

import torch
from torch import Tensor

from stablelightning.functional.row_keys import row_keys


def deal(target: Tensor, keys: Tensor | None, *, parts: int, seed: int) -> list[Tensor]:
    """Deal rows out, stratified by their target: classes, or values, are alike in all parts.

    Rows with equal keys are copies of each other and stay together. Where rows have keys, the parts
    do not depend on the order of the rows, and so not on the number of processes that read them.

    Args:
        target: ``(N, ...)``; the first column counts where there are several.
        keys: ``(N,)`` int64; ``None`` goes by the order.
        parts: how many parts, >= 1.
        seed: of the draw.

    Returns:
        For each part the indices of its rows, ascending.

    Example:
        >>> target, keys = torch.tensor([0, 0, 1, 1]), torch.tensor([11, 12, 13, 14])
        >>> [target[part].tolist() for part in deal(target, keys, parts=2, seed=0)]
        [[0, 1], [0, 1]]
    """
    if keys is None:
        keys = torch.arange(len(target))
    unique, place = keys.unique(return_inverse=True)
    strata = target.reshape(len(target), -1)[:, 0].double()
    # Copies of a row may differ in their target: the smallest counts, whatever their order.
    of_key = torch.full((len(unique),), torch.inf, dtype=torch.float64)
    of_key = of_key.scatter_reduce(0, place, strata, "amin")
    drawn = row_keys(unique, torch.full_like(unique, seed))
    order = drawn.argsort(stable=True)
    order = order[of_key[order].argsort(stable=True)]
    if target.is_floating_point():
        # One of each group of neighbours for every part, and not always the smallest for the first.
        group = torch.arange(len(unique)) // parts
        shuffled = drawn[order].argsort(stable=True)
        order = order[shuffled[group[shuffled].argsort(stable=True)]]
    part_of_key = torch.empty_like(unique)
    part_of_key[order] = torch.arange(len(unique)) % parts
    part = part_of_key[place]
    return [(part == number).nonzero()[:, 0] for number in range(parts)]
