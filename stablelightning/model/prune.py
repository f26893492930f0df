"""Pruning a whole model: which of its weights, by what masks, made permanent, and counted.

Over ``torch.nn.utils.prune``, whose reparametrization (``weight_orig`` and ``weight_mask``) is what
:func:`apply_masks` leaves and :func:`make_permanent` takes away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, prune

from stablelightning.errors import ModelError, RecipeError
from stablelightning.functional.sparsity import (
    adaptive_magnitude_masks,
    check_sparsity,
    layer_magnitude_masks,
    zero_count,
)

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
#: What torch's prune appends to the name of a weight that it has taken over.
_ORIGINAL = "_orig"


@dataclass(frozen=True, eq=False)
class PrunableWeight:
    """A weight that may be pruned.

    Args:
        name: dotted name of the parameter, as in the state dict.
        module: the layer that owns it.
        attribute: its name there.
    """

    name: str
    module: nn.Module
    attribute: str

    @property
    def layer(self) -> str:
        """What to call it in a report: the layer's name, and the attribute's unless ``weight``."""
        usual = self.attribute == "weight" and "." in self.name
        return self.name.rpartition(".")[0] if usual else self.name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now."""
        value = getattr(self.module, self.attribute)
        assert isinstance(value, nn.Parameter)
        return value


def prunable_weights(model: nn.Module, *, exclude: Sequence[str] = ()) -> list[PrunableWeight]:
    """Find what may be pruned: the matrices and kernels that a signal is multiplied by.

    These are the weights of linear, bilinear and convolutional layers, both kinds of weights of
    recurrent layers and cells, and the projections of ``nn.MultiheadAttention``; the head is one of
    them. Biases, norms, activations' slopes and embeddings never are, and neither is a parameter of
    a class that is not torch's (a position, a token, a scale). A weight that several layers share
    counts once, and not at all where an embedding shares it. A frozen weight is a weight.

    Args:
        model: any module.
        exclude: dotted names of modules; nothing in them is pruned.

    Returns:
        In the order of ``named_parameters``.

    Raises:
        RecipeError: there is no module of a name in ``exclude``.
        ModelError: nothing is left to prune; a layer is not made yet (lazy); a weight is
            reparametrized by torch's prune already.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 3), nn.LayerNorm(3))
        >>> [weight.name for weight in prunable_weights(net)]
        ['1.weight_ih_l0', '1.weight_hh_l0']
    """
    modules = dict(model.named_modules())
    _check_names(modules, exclude, type(model).__name__)
    seen = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    found = []
    for name, module in modules.items():
        if any(name == out or name.startswith(f"{out}.") for out in exclude):
            continue
        for attribute in _weights_of(module):
            full = f"{name}.{attribute}".lstrip(".")
            _check_not_taken(module, attribute, full)
            parameter = getattr(module, attribute, None)
            if parametrize.is_parametrized(module, attribute) or id(parameter) in seen:
                continue  # of a computed weight the parts are no matrices that a signal meets
            if isinstance(parameter, nn.Parameter):
                _check_made(parameter, full)
                seen.add(id(parameter))
                found.append(PrunableWeight(full, module, attribute))
    if not found:
        raise ModelError(
            "a model that is pruned must have linear, convolutional, recurrent or attention "
            f"layers with weights of their own, and {type(model).__name__} has none"
            f"{' outside of exclude' if exclude else ''}; name fewer modules in exclude, or remove "
            "the pruning."
        )
    return found


def _weights_of(module: nn.Module) -> Sequence[str]:
    if isinstance(module, nn.Linear | nn.Bilinear | _ConvNd):
        return ("weight",)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        own = [*module._parameters, *getattr(module, "parametrizations", ())]
        return [name.removesuffix(_ORIGINAL) for name in own if name.startswith("weight_")]
    return _ATTENTION if isinstance(module, nn.MultiheadAttention) else ()


def _check_names(modules: Mapping[str, nn.Module], exclude: Sequence[str], model: str) -> None:
    unknown = [name for name in exclude if name not in modules or not name]
    if unknown:
        some = ", ".join(list(modules)[1:6])
        raise RecipeError(
            f"exclude must name modules of the model, and {model} has no {unknown[0]!r}; its "
            f"modules are {some}, ..."
        )


def _check_not_taken(module: nn.Module, attribute: str, name: str) -> None:
    if f"{attribute}{_ORIGINAL}" in module._parameters:
        raise ModelError(
            f"a weight is pruned by one hand only, and {name} is reparametrized by "
            "torch.nn.utils.prune; call stablelightning.model.prune.make_permanent(model) first."
        )


def _check_made(parameter: nn.Parameter, name: str) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ModelError(
            f"weights must have a shape to be pruned, and {name} is lazy; run the model once on an "
            "example before."
        )


def prune_model(
    model: nn.Module, sparsity: float, *, per_layer: bool = False, exclude: Sequence[str] = ()
) -> list["LayerSparsity"]:
    """Set the smallest weights of a model to zero, once and for all.

    What is pruned is not held at zero by anything: to train on, use
    :class:`~stablelightning.callbacks.PruneGradually`, which finds the same weights.

    Args:
        model: changed in place; its parameters stay the same objects.
        sparsity: share of its prunable weights, in (0, 1); the count is exact.
        per_layer: prune every weight tensor to that share; ``False`` compares all tensors, each
            weight by its share in its own (LAMP).
        exclude: dotted names of modules in which nothing is pruned.

    Returns:
        The sparsity of every prunable weight.

    Raises:
        RecipeError: ``sparsity`` is out of its range; an unknown name.
        ModelError: there is nothing to prune.

    Source:
        Han, Pool, Tran, Dally 2015, arXiv:1506.02626; Lee, Park, Mo, Ahn, Shin 2021,
        arXiv:2010.07611 (comparing layers).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
        >>> layers = prune_model(net, 0.9)
        >>> sum(layer.zeros for layer in layers), sum(layer.weights for layer in layers)
        (36, 40)
    """
    check_sparsity(sparsity)
    weights = prunable_weights(model, exclude=exclude)
    masks = masks_of(weights, sparsity, per_layer=per_layer)
    apply_masks(model, {w.name: mask for w, mask in zip(weights, masks, strict=True)})
    make_permanent(model)
    return layer_sparsity(weights)


def masks_of(
    weights: Sequence[PrunableWeight],
    sparsity: float,
    *,
    per_layer: bool,
    masks: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Masks by magnitude of these weights, ``True`` where one is kept.

    Args:
        weights: what :func:`prunable_weights` gave.
        sparsity: share that is pruned, in [0, 1).
        per_layer: of each tensor, instead of all together.
        masks: what was kept so far; what was not stays pruned.

    Example:
        >>> (mask,) = masks_of(prunable_weights(nn.Linear(2, 2)), 0.5, per_layer=True)
        >>> int(mask.sum())
        2
    """
    choose = layer_magnitude_masks if per_layer else adaptive_magnitude_masks
    with torch.no_grad():
        return choose([weight.parameter for weight in weights], sparsity, masks=masks)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hold weights at zero by ``torch.nn.utils.prune``: ``weight`` becomes ``weight_orig * mask``.

    For a training loop of your own. The optimizer goes on with the same parameter, under another
    name; checkpoints have other keys until :func:`make_permanent`.

    Args:
        model: changed in place.
        masks: dotted names of parameters to masks of their shapes, ``True`` where it is kept.

    Raises:
        ModelError: there is no such parameter, or it has another shape.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> apply_masks(net, {"0.weight": torch.tensor([[True, False]])})
        >>> sorted(net.state_dict()), net[0].weight[0, 1].item()
        (['0.weight_mask', '0.weight_orig'], 0.0)
    """
    for name, mask in masks.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        parameter = module._parameters.get(attribute)
        if parameter is None or parameter.shape != mask.shape:
            got = "no such parameter" if parameter is None else f"shape {tuple(parameter.shape)}"
            raise ModelError(
                f"a mask must have the name and shape of a parameter, got {name} "
                f"{tuple(mask.shape)} for {got}; make masks of this model's own weights."
            )
        prune.custom_from_mask(module, attribute, mask.to(parameter.device))


def make_permanent(model: nn.Module) -> None:
    """Make every pruning by ``torch.nn.utils.prune`` permanent: plain weights with exact zeros.

    Parameters are the same objects as before, under their own names and in their own order again:
    torch leaves a pruned weight behind its bias, and the state of an optimizer is kept by number.

    Args:
        model: changed in place; one that is not pruned stays as it is.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1))
        >>> apply_masks(net, {"0.weight": torch.tensor([[True, False]])})
        >>> make_permanent(net)
        >>> list(net.state_dict()), net[0].weight[0, 1].item()
        (['0.weight', '0.bias'], 0.0)
    """
    for module in model.modules():
        taken = [name for name in module._parameters if name.endswith(_ORIGINAL)]
        pruned = [name.removesuffix(_ORIGINAL) for name in taken]
        pruned = [name for name in pruned if f"{name}_mask" in module._buffers]
        for name in pruned:
            prune.remove(module, name)
            with torch.no_grad():
                parameter = module._parameters[name]
                assert parameter is not None
                parameter.masked_fill_(parameter == 0, 0)  # a weight below zero times 0 is -0
        if pruned:
            rest = [name for name in module._parameters if name not in pruned]
            for name in rest:
                module._parameters[name] = module._parameters.pop(name)


@dataclass(frozen=True)
class LayerSparsity:
    """How many of a layer's weights are exactly zero.

    Args:
        layer: its name.
        shape: of the weight.
        weights: how many there are.
        zeros: how many of them are exactly zero.

    Example:
        >>> LayerSparsity("fc", (2, 5), 10, 9).sparsity
        0.9
    """

    layer: str
    shape: tuple[int, ...]
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.weights if self.weights else 0.0


def layer_sparsity(weights: Sequence[PrunableWeight]) -> list[LayerSparsity]:
    """Count exact zeros, as the weights are now.

    Args:
        weights: what :func:`prunable_weights` gave.

    Example:
        >>> layer_sparsity(prunable_weights(nn.Sequential(nn.Linear(2, 3))))
        [LayerSparsity(layer='0', shape=(3, 2), weights=6, zeros=0)]
    """
    return [
        LayerSparsity(w.layer, tuple(p.shape), p.numel(), zero_count(p))
        for w, p in ((weight, weight.parameter) for weight in weights)
    ]


def total_sparsity(layers: Sequence[LayerSparsity]) -> float:
    """Share of zeros among all weights of several layers, in [0, 1].

    Example:
        >>> total_sparsity([LayerSparsity("a", (1,), 1, 1), LayerSparsity("b", (3,), 3, 0)])
        0.25
    """
    weights = sum(layer.weights for layer in layers)
    return sum(layer.zeros for layer in layers) / weights if weights else 0.0
