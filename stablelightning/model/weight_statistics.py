"""What can be read from the weights of a layer alone: their scale, copies, and the biases."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from stablelightning.functional.scores import at_least_single
from stablelightning.functional.signals import duplicate_shares
from stablelightning.model.modules import parameters_of

#: A gain below this counts as this, so that zero has a logarithm.
_SILENT = 1e-30
#: So many values of matrices of one shape are looked at together.
_WAITING = 2**17


@dataclass(frozen=True)
class WeightStatistics:
    """Statistics of one layer's weights; of several matrices (gates, time steps), the worst.

    Args:
        gain: root mean square weight times sqrt(fan-in): by how much independent inputs of zero
            mean are amplified. 1 by LeCun's rule, sqrt 2 by He's, 0.58 by PyTorch's default.
        backward_gain: the same with sqrt(fan-out): by how much the gradient is.
        fan_in: inputs of each unit.
        units: units (output channels), of the first matrix.
        duplicates: share of the units that are copies of another, in [0, 1].
        zero: whether every weight is exactly zero.
        spread: standard deviation of the weights over their root mean square: 0 for constants.
        bias_mean: mean bias; 0 without one.
        bias_rms: root mean square bias.
        bias_min: smallest bias.
        bias_max: largest bias.
        finite: whether no weight or bias is NaN or infinite.
        frozen: whether no gradient is asked for the weight.
    """

    gain: float
    backward_gain: float
    fan_in: int
    units: int
    duplicates: float
    zero: bool
    spread: float
    bias_mean: float = 0.0
    bias_rms: float = 0.0
    bias_min: float = 0.0
    bias_max: float = 0.0
    finite: bool = True
    frozen: bool = False


def weight_statistics(module: nn.Module, kind: str) -> WeightStatistics | None:
    """Read the weights of one layer; ``None`` where it has none of its own.

    Args:
        module: a weight layer; parametrized weights are taken as they are used.
        kind: see :class:`~stablelightning.model.attribution.LayerRole`.

    Example:
        >>> statistics = weight_statistics(nn.Linear(100, 10), "linear")
        >>> round(statistics.gain, 1), statistics.fan_in, statistics.duplicates
        (0.6, 100, 0.0)
    """
    return statistics_of([module], kind).get(module)


def statistics_of(
    modules: Iterable[nn.Module], kind: str = ""
) -> dict[nn.Module, WeightStatistics]:
    """The same of many layers; of small matrices of one shape, several at the cost of one."""
    shapes: dict[nn.Module, list[torch.Size]] = {}
    waiting: dict[Any, list[tuple[nn.Module, int, Tensor]]] = {}
    seen: dict[nn.Module, list[_Matrix]] = {}
    for module in modules:
        for place, weight in enumerate(_weights_of(module)):
            matrix = _as_rows(weight, module)
            shapes.setdefault(module, []).append(matrix.shape)
            seen.setdefault(module, []).append(_UNSEEN)
            copies = place == 0 and kind != "embedding" and matrix.shape[0] > 1
            key = (matrix.shape, matrix.dtype, matrix.device, copies)
            group = waiting.setdefault(key, [])
            group.append((module, place, matrix))
            if len(group) * matrix.numel() >= _WAITING:
                _look(waiting.pop(key), seen, copies=copies)
    for key, group in waiting.items():
        _look(group, seen, copies=key[-1])
    biases = _bias_statistics(list(shapes))
    return {m: _put_together(m, sizes, seen[m], biases[m]) for m, sizes in shapes.items()}


@dataclass(frozen=True)
class _Matrix:
    rms: float
    mean: float
    duplicates: float


_UNSEEN = _Matrix(math.nan, math.nan, math.nan)


def _look(
    group: list[tuple[nn.Module, int, Tensor]],
    seen: dict[nn.Module, list[_Matrix]],
    *,
    copies: bool,
) -> None:
    """Read matrices of one shape together."""
    rows = [matrix for *_, matrix in group]
    stacked = torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)
    count = max(stacked[0].numel(), 1)
    rms = torch.linalg.vector_norm(stacked, dim=(1, 2)) / math.sqrt(count)
    same = duplicate_shares(stacked) if copies else torch.zeros_like(rms)
    numbers = torch.stack([rms, stacked.mean((1, 2)), same.to(rms.dtype)], 1).tolist()
    for (module, place, _), row in zip(group, numbers, strict=True):
        seen[module][place] = _Matrix(*row)


def _bias_statistics(modules: list[nn.Module]) -> dict[nn.Module, tuple[float, ...]]:
    """Mean, root mean square, minimum and maximum of the biases of each module."""
    groups: dict[Any, list[tuple[nn.Module, Tensor]]] = {}
    for module in modules:
        biases = _biases_of(module)
        joined = (torch.cat(biases) if len(biases) > 1 else biases[0]) if biases else torch.zeros(1)
        groups.setdefault((joined.shape, joined.dtype, joined.device), []).append((module, joined))
    found = {}
    for group in groups.values():
        stacked = torch.stack([joined for _, joined in group])
        smallest, largest = stacked.aminmax(dim=1)
        rms = torch.linalg.vector_norm(stacked, dim=1) / math.sqrt(stacked.shape[1])
        numbers = torch.stack([stacked.mean(1), rms, smallest, largest], 1).tolist()
        found.update({module: tuple(row) for (module, _), row in zip(group, numbers, strict=True)})
    return found


def _put_together(
    module: nn.Module, shapes: list[torch.Size], seen: list[_Matrix], biases: tuple[float, ...]
) -> WeightStatistics:
    gains = [one.rms * math.sqrt(shape[1]) for one, shape in zip(seen, shapes, strict=True)]
    at = max(range(len(gains)), key=lambda i: abs(math.log(max(gains[i], _SILENT))))
    mean, rms, smallest, largest = biases
    return WeightStatistics(
        gain=gains[at],
        backward_gain=seen[at].rms * math.sqrt(_fan_out(shapes[at][0], module)),
        fan_in=shapes[at][1],
        units=shapes[0][0],
        duplicates=seen[0].duplicates,
        zero=seen[at].rms == 0,
        spread=_spread(seen[at]),
        bias_mean=mean,
        bias_rms=rms,
        bias_min=smallest,
        bias_max=largest,
        finite=all(map(math.isfinite, [*(one.rms for one in seen), smallest, largest])),
        frozen=not any(p.requires_grad for p in parameters_of(module)),
    )


def _spread(seen: _Matrix) -> float:
    """Standard deviation over root mean square, from a mean alone: one pass less."""
    if seen.rms == 0 or not math.isfinite(seen.rms):
        return 0.0
    return math.sqrt(max(1 - (seen.mean / seen.rms) ** 2, 0.0))


def _weights_of(module: nn.Module) -> list[Tensor]:
    direct = getattr(module, "weight", None)  # a property, where it is parametrized
    if isinstance(direct, Tensor) and _is_matrix(direct):
        return [direct.detach()]
    found = [
        p.detach()
        for name, p in module.named_parameters(recurse=False)
        if _is_matrix(p) and "bias" not in name
    ]
    if isinstance(module, nn.MultiheadAttention):
        found.append(module.out_proj.weight.detach())
    return found


def _is_matrix(weight: Tensor) -> bool:
    return not is_lazy(weight) and weight.ndim >= 2 and weight.is_floating_point()


def _biases_of(module: nn.Module) -> list[Tensor]:
    return [
        at_least_single(p.detach().flatten())
        for name, p in module.named_parameters(recurse=False)
        if "bias" in name and p.ndim == 1 and p.numel() > 0 and p.is_floating_point()
    ]


def _as_rows(weight: Tensor, module: nn.Module) -> Tensor:
    """One row for each unit; a transposed convolution keeps its units in the second dimension."""
    if isinstance(module, _ConvTransposeNd) and module.groups == 1:
        weight = weight.transpose(0, 1)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return at_least_single(weight.reshape(-1, 1))  # a lookup adds nothing up: fan-in 1
    return at_least_single(weight.reshape(weight.shape[0], -1))


def _fan_out(units: int, module: nn.Module) -> float:
    kernel = getattr(module, "kernel_size", ())
    positions = math.prod(kernel) if isinstance(kernel, tuple) else 1
    stride = getattr(module, "stride", ())
    steps = math.prod(stride) if isinstance(stride, tuple) else 1
    groups = getattr(module, "groups", 1) if positions else 1
    return units * positions / steps / groups if groups else float(units)
