"""Depth groups: a network cut into parts from input to output, the last of which is its head."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from torch import nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.modules import modules_of
from stablelightning.model.structure import (
    find_blocks,
    find_heads,
    is_weight_layer,
    watched_run,
)

#: What comes before the first block.
STEM = "stem"


@dataclass(frozen=True)
class DepthGroup:
    """One part of a network, by names that hold for the module that was cut.

    Args:
        name: of its block or layer (``"layer1.0"``), ``"stem"`` before the first block, or the
            user's own.
        parameters: as in ``model.named_parameters()``; each is in one group only.
        modules: as in ``model.named_modules()``: everything whose parameters and buffers are all in
            this group, containers before what they hold.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]


def depth_groups(
    model: nn.Module,
    run: Callable[[], Any] | None = None,
    *,
    named: Sequence[str | Sequence[str]] | None = None,
) -> list[DepthGroup]:
    """Cut a network into groups by depth: what is opened, kept or given a rate together.

    A group is a repeated block (of a transformer, of the stages of a ResNet) where there are any,
    else a layer with weights. What comes before the first block is the stem. What lies between two
    groups, such as a norm, belongs to the one before it. The head, which are the last layers with
    weights, is a group by itself.

    Args:
        model: any module, also a LightningModule around its network; nothing is changed.
        run: runs the model once on an example, so that the order is that of the forward; ``None``
            takes the order in which layers were registered.
        named: groups of your own instead, from input to output: names of modules or parameters, or
            lists of them.

    Returns:
        At least one group, from input to output, the head last. Every parameter is in exactly one,
        by identity: a shared one in the first that has it.

    Raises:
        ModelError: the model has no layer with weights.
        RecipeError: a name in ``named`` is in no place of the model or in two groups, or a
            parameter is in none.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.3 (layer groups for gradual unfreezing).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> for group in depth_groups(net):
        ...     print(group.name, group.parameters)
        0 ('0.weight', '0.bias', '1.weight', '1.bias')
        3 ('3.weight', '3.bias')
        >>> [group.name for group in depth_groups(net, named=[["0", "1"], "3"])]
        ['0, 1', '3']
    """
    if named is not None:
        place, names = _named_places(model, named)
    else:
        place, names = _found_places(model, run)
    parameters: list[list[str]] = [[] for _ in names]
    for name, parameter in model.named_parameters():
        parameters[place[id(parameter)]].append(name)
    modules = _modules_by_place(model, place, len(names))
    whole = [
        DepthGroup(name, tuple(inside), tuple(modules[number]))
        for number, (name, inside) in enumerate(zip(names, parameters, strict=True))
    ]
    return [group for group in whole if group.parameters]


def merged_groups(groups: Sequence[DepthGroup], most: int) -> list[DepthGroup]:
    """Join neighbours, so that a deep network has no more than ``most`` groups.

    Args:
        groups: of :func:`depth_groups`.
        most: groups that are wanted at most, >= 2; the head stays a group by itself, and the others
            are shared out evenly.

    Returns:
        The groups as they are where there are no more than that.

    Raises:
        RecipeError: ``most`` is less than 2.

    Example:
        >>> net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
        >>> [group.name for group in merged_groups(depth_groups(net), 3)]
        ['0 to 3', '4 to 7', '8']
    """
    if most < 2:
        raise RecipeError(f"most must be at least 2, got {most}: the head is a group by itself.")
    if len(groups) <= most:
        return list(groups)
    *body, head = groups
    bounds = [round(number * len(body) / (most - 1)) for number in range(most)]
    parts = [body[start:end] for start, end in pairwise(bounds)]
    return [*(_joined(part) for part in parts), head]


def depths_of(model: nn.Module, run: Callable[[], Any] | None = None) -> dict[int, int]:
    """Depth of each parameter by its ``id``, counted from 0 at the input; blocks or layers count.

    Args:
        model: any module.
        run: as for :func:`depth_groups`.

    Raises:
        ModelError: the model has no layer with weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> list(depths_of(net).values())
        [0, 0, 1, 1]
    """
    depths, _ = _depths(model, run)
    return depths


def _joined(part: Sequence[DepthGroup]) -> DepthGroup:
    name = part[0].name if len(part) == 1 else f"{part[0].name} to {part[-1].name}"
    return DepthGroup(
        name,
        tuple(name for group in part for name in group.parameters),
        tuple(name for group in part for name in group.modules),
    )


# ---- found by structure -----------------------------------------------------------------------


def _depths(
    model: nn.Module, run: Callable[[], Any] | None
) -> tuple[dict[int, int], dict[int, nn.Module]]:
    """The depth of each parameter, and the layer or block that each depth is named after."""
    blocks = find_blocks(model, run)
    layers = blocks or [m for m in modules_of(model) if is_weight_layer(m) or _is_embedding(m)]
    if not layers:
        raise ModelError(
            f"groups by depth need a layer with weights, and {type(model).__name__} has none; "
            "pass the network itself."
        )
    first = 1 if blocks else 0  # what comes before the first block is a layer by itself
    place = {id(p): first + n for n, x in enumerate(layers) for p in x.parameters()}
    started = {id(layer): n for n, layer in enumerate(_as_run(model, layers, run))}
    inside = {
        id(p): first + started[id(layer)] for layer in reversed(layers) for p in layer.parameters()
    }
    depths: dict[int, int] = {}
    depth, seen = 0, 0
    for parameter in model.parameters():
        if id(parameter) in inside:
            depth, seen = inside[id(parameter)], max(seen, place[id(parameter)])
        elif blocks and seen == len(blocks):
            depth = 1 + len(blocks)  # behind the last block: its norm, the head
        depths[id(parameter)] = depth
    return depths, {first + started[id(layer)]: layer for layer in layers}


def _found_places(
    model: nn.Module, run: Callable[[], Any] | None
) -> tuple[dict[int, int], list[str]]:
    depths, layers = _depths(model, run)
    heads = find_heads(model, run)
    inside = {id(module) for head in heads for module in head.modules()}
    # A head that is tied to an embedding is opened with it, or it would open first what is deepest.
    others = [m for m in model.modules() if id(m) not in inside]
    shared = {id(p) for module in others for p in module.parameters(recurse=False)}
    in_head = {id(p) for head in heads for p in head.parameters()} - shared
    last = max(layers)
    # What follows the last block and is no head, such as a final norm, goes with that block.
    place = {key: min(depth, last) for key, depth in depths.items()}
    place.update(dict.fromkeys(in_head, last + 1))
    called = {id(module): name for name, module in model.named_modules()}
    names = [called[id(layers[depth])] if depth in layers else STEM for depth in range(last + 1)]
    return place, [*names, ", ".join(called[id(head)] for head in heads)]


def _as_run(
    model: nn.Module, layers: list[nn.Module], run: Callable[[], Any] | None
) -> list[nn.Module]:
    """The layers in the order in which they first run; those that do not run come last."""
    if run is None:
        return layers
    order: dict[nn.Module, None] = {}
    watched_run(model, run, layers, lambda layer, *_: order.setdefault(layer))
    return [*order, *(layer for layer in layers if layer not in order)]


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


# ---- named by the user ------------------------------------------------------------------------


def _named_places(
    model: nn.Module, named: Sequence[str | Sequence[str]]
) -> tuple[dict[int, int], list[str]]:
    wanted = [[part] if isinstance(part, str) else list(part) for part in named]
    place: dict[int, int] = {}
    for number, prefixes in enumerate(wanted):
        for prefix in prefixes:
            for parameter in _inside(model, prefix):
                if place.setdefault(id(parameter), number) != number:
                    other = wanted[place[id(parameter)]]
                    raise RecipeError(
                        f"groups must not overlap, got {prefix!r} in a group beside "
                        f"{', '.join(other)}; name each part once."
                    )
    left = [name for name, p in model.named_parameters() if id(p) not in place]
    if left:
        raise RecipeError(
            f"groups must hold every parameter, and {len(left)} are in none, first of all "
            f"{left[0]}; add it to a group."
        )
    return place, [", ".join(prefixes) for prefixes in wanted]


def _inside(model: nn.Module, prefix: str) -> list[nn.Parameter]:
    everything = dict(model.named_parameters(remove_duplicate=False))
    found = [p for name, p in everything.items() if f"{name}.".startswith(f"{prefix}.")]
    if not found:
        known = [name for name, _ in model.named_modules() if name]
        near = get_close_matches(prefix, [*known, *everything], 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known[:5])}, ..."
        raise RecipeError(
            f"groups must name modules with parameters of {type(model).__name__}, got "
            f"{prefix!r}; {hint}"
        )
    return found


# ---- modules ----------------------------------------------------------------------------------


def _modules_by_place(model: nn.Module, place: dict[int, int], groups: int) -> list[list[str]]:
    """The modules that lie in one group as a whole; buffers are where the layer before them is."""
    owners: dict[int, set[int]] = {}
    latest = 0
    for module in model.modules():
        own = {place[id(p)] for p in module.parameters(recurse=False)}
        if not own and any(True for _ in module.buffers(recurse=False)):
            own = {latest}
        latest = max(own, default=latest)
        owners[id(module)] = own
    inside: list[list[str]] = [[] for _ in range(groups)]
    for name, module in model.named_modules():
        held = _union(owners[id(m)] for m in module.modules())
        if name and len(held) == 1:
            inside[held.pop()].append(name)
    return inside


def _union(sets: Iterable[set[int]]) -> set[int]:
    return set().union(*sets)
