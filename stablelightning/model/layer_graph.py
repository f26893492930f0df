"""Which layer reads which, and what that says: what every gradient must pass, what only gates."""

from collections.abc import Collection, Mapping


def unavoidable(
    predecessors: Mapping[int, Collection[int]], ends: Collection[int], starts: Collection[int]
) -> set[int]:
    """The layers through which every path from the inputs to the outputs leads.

    What vanishes there has vanished for everything before it; a layer in a residual branch, a gate
    or one of several parallel paths has a way around it. These are the dominators of the outputs.

    Args:
        predecessors: for each layer, the layers whose outputs it reads; numbers grow in the order
            of execution.
        ends: layers whose outputs make the loss.
        starts: layers that read the model's inputs. Others without predecessors read a learned
            constant (a class token), and lead nowhere.

    Example:
        >>> skip = {0: [], 1: [0], 2: [0, 1], 3: [2]}
        >>> sorted(unavoidable(skip, ends=[3], starts=[0]))
        [0, 2, 3]
    """
    before: dict[int, set[int]] = {}
    for layer in sorted(predecessors):
        ways = [before[p] for p in predecessors[layer] if p in before and p < layer]
        if ways:
            before[layer] = set.intersection(*ways) | {layer}
        elif layer in starts:
            before[layer] = {layer}
    reached = [before[end] for end in ends if end in before]
    return set.intersection(*reached) if reached else set()


def gates_only(
    predecessors: Mapping[int, Collection[int]], ends: Collection[int], gated: Collection[int]
) -> set[int]:
    """The layers whose signal ends in gates: it scales another signal and is none itself.

    Args:
        predecessors: as for :func:`unavoidable`.
        ends: layers whose outputs make the loss.
        gated: layers whose activation is multiplied with another signal.

    Example:
        >>> squeeze = {0: [], 1: [0], 2: [1], 3: [0, 2]}
        >>> sorted(gates_only(squeeze, ends=[3], gated=[2]))
        [1, 2]
    """
    readers: dict[int, set[int]] = {layer: set() for layer in predecessors}
    for layer, read in predecessors.items():
        for earlier in read:
            readers.setdefault(earlier, set()).add(layer)
    found = set(gated) - set(ends)
    for layer in sorted(predecessors, reverse=True):
        if layer not in ends and readers[layer] and readers[layer] <= found:
            found.add(layer)
    return found
