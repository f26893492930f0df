"""Which parameters of a model are decayed, and which never are."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from stablelightning.model.modules import modules_of

#: What these hold scales or shifts what passes through, one number for each unit.
_SCALES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
#: What these hold is a weight, whatever its shape: that of one unit is a single row.
_WEIGHTS = (nn.Linear, _ConvNd, nn.Bilinear, nn.RNNBase, nn.Embedding, nn.EmbeddingBag)
#: A weight-normalized layer holds the length of each row here, which is a scale.
_LENGTHS = ("weight_g", "original0")


def decayed_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name the parameters that weight decay and other penalties on size are meant for.

    Weights of linear, convolutional, recurrent, attention and embedding layers, and any other
    parameter with at least two axes longer than one. Never biases, scales and shifts of norms,
    slopes of PReLU and other scales of units: they are few, they do not overfit, and pulling them
    to zero changes what the layer is. Nor what the model itself names in ``no_weight_decay()``, as
    timm's do (positions, class tokens).

    Args:
        model: any module; lazy parameters, whose shape is not known yet, are left out.

    Returns:
        Parameters by name, each once, in the order of ``named_parameters()``; frozen ones too.

    Source:
        Goodfellow, Bengio, Courville 2016, Deep Learning, section 7.1 (biases); He et al. 2015,
        arXiv:1502.01852 (slopes); Jia et al. 2018, arXiv:1807.11205, section 3.1 (norms).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.PReLU(), nn.Linear(3, 1))
        >>> list(decayed_parameters(net))
        ['0.weight', '3.weight']
    """
    spared = _spared_by_their_owner(model)
    named = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        id(p)
        for prefix, module in model.named_modules()
        for name, p in module._parameters.items()
        if p is not None and f"{prefix}.{name}".lstrip(".") not in spared
        if not is_lazy(p) and _is_weight(module, name, p)
    }
    scaled = {
        id(p)
        for module in modules_of(model)
        if isinstance(module, _SCALES)
        for p in module._parameters.values()
        if p is not None
    }
    parameters = {id(p): p for p in model.parameters()}
    return {name: parameters[key] for key, name in named.items() if key in decayed - scaled}


def _is_weight(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    # "bias", "bias_ih_l0", "in_proj_bias", "relative_position_bias_table": all are added.
    if "bias" in name or name in _LENGTHS or isinstance(module, _SCALES):
        return False
    if isinstance(module, _WEIGHTS):
        return parameter.ndim >= 2
    return sum(size > 1 for size in parameter.shape) >= 2


def _spared_by_their_owner(model: nn.Module) -> set[str]:
    """What modules name in the method ``no_weight_decay()`` that timm's models have."""
    spared: set[str] = set()
    for prefix, module in model.named_modules():
        method = getattr(module, "no_weight_decay", None)
        names = method() if callable(method) else ()
        spared |= {f"{prefix}.{name}".lstrip(".") for name in names}
    return spared
