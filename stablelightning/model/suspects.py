"""What may be at fault in a step that went wrong: its rows, its weights, its training so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stablelightning.model.modules import parameters_of

#: A row this many times as large as the others, or as is usual, is not of the same data.
FAR_OFF = 100.0

#: The gain of a layer, the root mean square of its weights times the root of its inputs, is about
#: one at the start and a few after training. A signal that is multiplied by this at each of twenty
#: layers leaves the range of float32.
LARGE_GAIN = 100.0

#: A loss of the same rows that was so many times lower with earlier weights was raised by training.
RAISED = 10.0


@dataclass(frozen=True)
class BadRows:
    """Rows of a batch that do not belong to the data.

    Args:
        rows: their positions in the batch.
        of: number of rows of the batch.
        infinite: whether they hold NaN or infinity; else they are far off.
        ratio: how many times as large as the others, or as usual, the largest is.
    """

    rows: list[int]
    of: int
    infinite: bool
    ratio: float = math.nan


def bad_rows(batch: Any, usual: Sequence[float] = ()) -> BadRows | None:
    """Rows of a batch that are not finite, else those that are far off.

    Args:
        batch: as the step is given it; every floating tensor in it counts, targets too.
        usual: for each of these tensors, the largest absolute value of a usual batch; without
            it, rows can only be held against the other rows.

    Example:
        >>> images = torch.ones(4, 3)
        >>> images[2, 1] = float("nan")
        >>> bad_rows((images, torch.tensor([0, 1, 2, 3])))
        BadRows(rows=[2], of=4, infinite=True, ratio=nan)
        >>> bad_rows(images.nan_to_num() * 1e6, usual=[1.0]).rows
        [0, 1, 2, 3]
    """
    leaves = floating_leaves(batch)
    if not leaves:
        return None
    of = len(leaves[0])
    sizes = [leaf.abs().flatten(1).amax(1).float() for leaf in leaves]
    broken = {row for size in sizes for row in (~size.isfinite()).nonzero()[:, 0].tolist()}
    if broken:
        return BadRows(sorted(broken), of, infinite=True)
    far: set[int] = set()
    largest = 0.0
    known = usual if len(usual) == len(sizes) else [0.0] * len(sizes)
    for size, before in zip(sizes, known, strict=True):
        scale = before or float(size.median())
        if scale <= 0:
            continue
        far |= set((size > FAR_OFF * scale).nonzero()[:, 0].tolist())
        largest = max(largest, float(size.max()) / scale)
    return BadRows(sorted(far), of, infinite=False, ratio=largest) if far else None


def floating_leaves(batch: Any) -> list[Tensor]:
    """The floating tensors of a batch that have a row for each of its rows, and something in them.

    Example:
        >>> [leaf.shape for leaf in floating_leaves((torch.ones(2, 3), torch.tensor([0, 1])))]
        [torch.Size([2, 3])]
    """
    tensors = [t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim]
    if not tensors:
        return []
    rows = len(tensors[0])
    return [
        t.detach()[:, None] if t.ndim == 1 else t.detach()
        for t in tensors
        if t.is_floating_point() and t.numel() and len(t) == rows and t.layout is torch.strided
    ]


def largest_gain(model: nn.Module) -> tuple[str, float]:
    """The layer with the largest weights for the number of its inputs, and its gain.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> _ = net[1].weight.data.fill_(500.0)
        >>> largest_gain(net)
        ('1', 1000.0)
    """
    names, gains = [], []
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not parameter.numel() or id(parameter) in embeddings:
            continue
        gains.append(_norm(parameter) / math.sqrt(len(parameter)))
        names.append(name.rpartition(".")[0])
    if not gains:
        return "", 0.0
    place = max(range(len(gains)), key=lambda n: math.inf if gains[n] != gains[n] else gains[n])
    return names[place], gains[place]


def distance_from(model: nn.Module, earlier: Mapping[str, Tensor]) -> float:
    """How far the parameters are from earlier ones, relative to the size of those.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> distance_from(net, {"weight": net.weight.detach() / 2})
        1.0
    """
    moved, size = [0.0], [0.0]
    for name, parameter in model.named_parameters():
        old = earlier.get(name)
        if old is None or old.shape != parameter.shape or not parameter.is_floating_point():
            continue
        old = old.detach().to(parameter.device)
        moved.append(_norm(parameter.detach() - old))
        size.append(_norm(old))
    return math.hypot(*moved) / math.hypot(*size) if any(size) else math.nan


def _norm(tensor: Tensor) -> float:
    """The L2 norm, also where squares leave float32; some devices have no float64."""
    values = tensor.detach().abs().float()
    largest = float(values.max()) if values.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))


def largest_gradient(model: nn.Module, gradients: Sequence[Tensor | None]) -> tuple[str, float]:
    """The module with the largest gradient, and its share of the joint squared norm.

    Args:
        model: whose parameters have them.
        gradients: of ``parameters_of(model)``, in that order.
    """
    names = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    norms: dict[str, float] = {}
    for parameter, gradient in zip(parameters_of(model), gradients, strict=True):
        if gradient is not None:
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            name = names.get(id(parameter), "")
            norms[name] = math.hypot(norms.get(name, 0.0), _norm(values))
    total = math.hypot(*norms.values())
    if not norms or not 0 < total < math.inf:
        return "", math.nan
    place = max(norms, key=norms.__getitem__)
    return place, (norms[place] / total) ** 2
