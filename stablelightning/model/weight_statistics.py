"""What can be read from the weights of a layer alone: their scale, copies, and the biases."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from stablelightning.functional.scores import at_least_single
from stablelightning.functional.signals import duplicate_units, root_mean_square

#: A gain below this counts as this, so that zero has a logarithm.
_SILENT = 1e-30


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
    matrices = [_as_rows(w, module) for w in _weights_of(module)]
    if not matrices:
        return None
    biases = _biases_of(module)
    joined = torch.cat(biases) if biases else torch.zeros(1)
    sizes = [float(root_mean_square(m)) for m in matrices]
    gains = [size * math.sqrt(m.shape[1]) for size, m in zip(sizes, matrices, strict=True)]
    at = max(range(len(gains)), key=lambda i: abs(math.log(max(gains[i], _SILENT))))
    worst, rms = matrices[at], sizes[at]
    smallest, largest = (float(x) for x in joined.aminmax())
    return WeightStatistics(
        gain=gains[at],
        backward_gain=rms * math.sqrt(_fan_out(worst, module)),
        fan_in=worst.shape[1],
        units=matrices[0].shape[0],
        duplicates=0.0 if kind == "embedding" else _duplicates(matrices[0]),
        zero=rms == 0,
        spread=_spread(worst, rms),
        bias_mean=float(joined.mean()),
        bias_rms=float(root_mean_square(joined)),
        bias_min=smallest,
        bias_max=largest,
        finite=all(map(math.isfinite, [*sizes, smallest, largest])),
        frozen=not any(p.requires_grad for p in module.parameters()),
    )


def _spread(rows: Tensor, rms: float) -> float:
    """Standard deviation over root mean square, from a mean alone: one pass less."""
    if rms == 0 or not math.isfinite(rms):
        return 0.0
    return math.sqrt(max(1 - (float(rows.mean()) / rms) ** 2, 0.0))


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


def _fan_out(rows: Tensor, module: nn.Module) -> float:
    kernel = getattr(module, "kernel_size", ())
    positions = math.prod(kernel) if isinstance(kernel, tuple) else 1
    stride = getattr(module, "stride", ())
    steps = math.prod(stride) if isinstance(stride, tuple) else 1
    groups = getattr(module, "groups", 1) if positions else 1
    return rows.shape[0] * positions / steps / groups if groups else float(rows.shape[0])


def _duplicates(rows: Tensor) -> float:
    # Biases are left aside: random ones tell the units apart only until a norm removes them.
    return float(duplicate_units(rows).float().mean()) if rows.shape[0] > 1 else 0.0
