"""Walking back along autograd's graph: which of some known tensors a tensor was made from."""

from collections.abc import Mapping
from typing import Any, TypeVar

_Mark = TypeVar("_Mark")

#: A node of autograd's graph. Held in a dict, it keeps its identity.
Node = Any

#: A walk that has seen so many nodes gives up: what it looks for is not near.
_FAR = 5000


def first_met(start: Node | None, marks: Mapping[Node, _Mark]) -> list[_Mark]:
    """The marks of the nodes first met on every way back from ``start``, nearest first.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = x * 2
        >>> z = y.exp() + y
        >>> first_met(z.grad_fn, {y.grad_fn: "y"})
        ['y']
    """
    if start is None:
        return []
    pending, seen, found = [start], {start}, []
    for node in pending:  # grows while it is read: breadth first
        if node in marks:
            found.append(marks[node])
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
        if len(seen) > _FAR:
            break
    return found
