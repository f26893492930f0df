"""Parameter groups: which parameters are decayed and which never are, and a rate for each layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from stablelightning.errors import RecipeError
from stablelightning.functional.schedules import check_not_negative, check_positive, check_share
from stablelightning.model.depth import depths_of
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


Groups = list[dict[str, Any]]


def decay_groups(
    model: nn.Module, weight_decay: float | None = None, *, groups: Groups | None = None
) -> Groups:
    """Split parameters into those that weight decay is meant for and those that are left alone.

    By :func:`decayed_parameters`: weights decay; biases, norms, slopes of PReLU and other scales of
    units never do. Each parameter is in one group, by identity: shared ones once, equal ones both.
    Frozen parameters keep their place, so that they can be opened later.

    Args:
        model: any module.
        weight_decay: of the groups that decay, >= 0; ``None`` leaves it to the optimizer's own.
        groups: parameter groups of ``model`` that are split further, as of
            :func:`layerwise_groups`; ``None`` for all parameters together.

    Returns:
        Groups for any torch optimizer, with names for ``LearningRateMonitor``; none is empty.

    Raises:
        RecipeError: ``weight_decay`` is negative or no number.

    Source:
        Jia et al. 2018, arXiv:1807.11205, section 3.1; He et al. 2018, arXiv:1812.01187, section 3
        (no bias decay).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        >>> adamw = torch.optim.AdamW(decay_groups(net, 0.1), lr=1e-3)
        >>> [(g["name"], len(g["params"]), g["weight_decay"]) for g in adamw.param_groups]
        [('decay', 2, 0.1), ('no_decay', 4, 0.0)]
    """
    if weight_decay is not None:
        check_not_negative("weight_decay", weight_decay)
    decayed = {id(p) for p in decayed_parameters(model).values()}
    settings = {} if weight_decay is None else {"weight_decay": weight_decay}
    parts: Groups = []
    groups = [{"params": list(model.parameters())}] if groups is None else groups
    for number, group in enumerate(groups):
        rest = {key: value for key, value in group.items() if key not in ("params", "name")}
        prefix = _name_of(groups, number)
        weights = [p for p in group["params"] if id(p) in decayed]
        others = [p for p in group["params"] if id(p) not in decayed]
        parts.append({"name": f"{prefix}decay", "params": weights, **rest, **settings})
        parts.append({"name": f"{prefix}no_decay", "params": others, **rest, "weight_decay": 0.0})
    return [part for part in parts if part["params"]]


def layerwise_groups(
    model: nn.Module,
    lr: float,
    *,
    decay: float = 0.8,
    run: Callable[[], Any] | None = None,
    groups: Groups | None = None,
) -> Groups:
    """Give each layer a rate of its own, smaller by one factor for each layer from the output.

    A layer is a repeated block of the network (of a transformer, of the stages of a ResNet) where
    there are any, else a layer with weights. What comes before the first block is one layer below
    it, what comes after the last (the head) one above. What lies inside no layer, such as a norm
    between two, belongs to the layer before it.

    Args:
        model: any module, its layers registered in the order in which they run, or with ``run``.
        lr: rate of the last layer, > 0.
        decay: rate of a layer over that of the next one, in (0, 1].
        run: runs the model once on an example, for models that register their layers in another
            order than they use them; flags, gradients and generators are left as they were.
        groups: parameter groups of ``model`` that are split further, as of :func:`decay_groups`;
            a group's own ``lr`` takes the place of ``lr``. ``None`` for all parameters together.

    Returns:
        Groups for any torch optimizer, from input to output, named ``layer_0``, ``layer_1``, ...;
        parameters once each, by identity: a shared one is in the first layer that has it.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: ``model`` has no layer with weights.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.2; Clark et al. 2020, arXiv:2003.10555,
        appendix B; Bao et al. 2021, arXiv:2106.08254.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))
        >>> adamw = torch.optim.AdamW(layerwise_groups(net, 0.1, decay=0.5))
        >>> [(g["name"], g["lr"]) for g in adamw.param_groups]
        [('layer_0', 0.025), ('layer_1', 0.05), ('layer_2', 0.1)]
    """
    check_positive("lr", lr)
    check_positive("decay", decay)
    check_share("decay", decay)
    depths = depths_of(model, run)
    last = max(depths.values())
    parts: Groups = []
    groups = [{"params": list(model.parameters())}] if groups is None else groups
    for depth in range(last + 1):
        for number, group in enumerate(groups):
            inside = [p for p in group["params"] if depths[id(p)] == depth]
            name = f"{_name_of(groups, number)}layer_{depth}"
            rate = float(group.get("lr", lr)) * decay ** (last - depth)
            parts.append({**group, "name": name, "params": inside, "lr": rate})
    return [part for part in parts if part["params"]]


class ParameterGroups:
    """Parameter groups for whatever optimizer a recipe names: the setting of ``StableMixin``.

    Args:
        decay_weights_only: spare biases, norms, slopes and other scales the optimizer's weight
            decay, by :func:`decay_groups`.
        layer_decay: rate of a layer over that of the next one, in (0, 1], by
            :func:`layerwise_groups`; ``None`` for one rate.

    Raises:
        RecipeError: ``layer_decay`` is out of its range, or the optimizer has no rate.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> groups = ParameterGroups(layer_decay=0.5)(net, sgd)
        >>> [group["name"] for group in groups]
        ['layer_0/decay', 'layer_0/no_decay', 'layer_1/decay', 'layer_1/no_decay']
    """

    def __init__(
        self, *, decay_weights_only: bool = True, layer_decay: float | None = None
    ) -> None:
        if layer_decay is not None:
            check_share("layer_decay", layer_decay)
            check_positive("layer_decay", layer_decay)
        self.decay_weights_only = decay_weights_only
        self.layer_decay = layer_decay

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Groups:
        """Groups of the parameters of ``model``, by the rate that ``optimizer`` has.

        Args:
            model: whose parameters are grouped.
            optimizer: made of all of them together, for its defaults; it is thrown away.
        """
        groups: Groups | None = None
        if self.layer_decay is not None:
            rate = optimizer.defaults.get("lr")
            if rate is None:
                raise RecipeError(
                    f"layer_decay needs an optimizer with a rate, and {type(optimizer).__name__} "
                    "has none; leave it out."
                )
            groups = layerwise_groups(model, float(rate), decay=self.layer_decay)
        if self.decay_weights_only:
            return decay_groups(model, groups=groups)
        return groups or [{"params": list(model.parameters())}]


def _name_of(groups: Groups, number: int) -> str:
    """What the names of a group's parts begin with; nothing where there is but one group."""
    if "name" in groups[number]:
        return f"{groups[number]['name']}/"
    return f"group_{number}/" if len(groups) > 1 else ""
