"""Putting sampled outputs together: any pytree in, the same with a leading sample axis out."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from stablelightning.errors import ModelError


def stack_outputs(outputs: list[Any]) -> Any:
    """Stack T outputs of equal structure into one with a leading axis of T.

    Tensors are stacked, numbers become a tensor of T numbers, and any other leaf (a string,
    ``None``) must be the same in every sample and is kept as it is.

    Raises:
        ModelError: structure or shapes differ from sample to sample, or nothing is a tensor.

    Example:
        >>> stack_outputs([{"y": torch.zeros(2)}, {"y": torch.ones(2)}])["y"].shape
        torch.Size([2, 2])
    """
    flat, specs = zip(*(tree_flatten(o) for o in outputs), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise ModelError(
            "every sample must have the same output structure, and this model's differs from "
            "pass to pass; pass call= a function that returns the part that is always there."
        )
    return tree_unflatten(
        [_stack_leaf(list(leaves)) for leaves in zip(*flat, strict=True)], specs[0]
    )


def concatenate_chunks(chunks: list[Any]) -> Any:
    """Concatenate chunks ``(c, ...)`` of samples along their leading axis."""
    if len(chunks) == 1:
        return chunks[0]
    flat, specs = zip(*(tree_flatten(c) for c in chunks), strict=True)
    joined = [
        torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
        for leaves in zip(*flat, strict=True)
    ]
    return tree_unflatten(joined, specs[0])


def detached_copies(tree: Any) -> Any:
    """The same tree with every tensor detached from what the next pass may overwrite."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, tree)


def _stack_leaf(leaves: list[Any]) -> Any:
    first = leaves[0]
    if isinstance(first, Tensor):
        if any(leaf.shape != first.shape for leaf in leaves):
            shapes = sorted({tuple(leaf.shape) for leaf in leaves})
            raise ModelError(
                f"every sample must have the same output shape, got {shapes[0]} and {shapes[-1]}; "
                "pass call= a function that returns outputs of one shape."
            )
        return torch.stack(leaves)
    if isinstance(first, bool | int | float):
        return torch.tensor(leaves)
    if any(leaf is not first and leaf != first for leaf in leaves):
        raise ModelError(
            f"an output that is not a tensor must be the same in every sample, and this "
            f"{type(first).__name__} changes; register its class as a pytree, or pass call= a "
            "function that returns tensors."
        )
    return first
