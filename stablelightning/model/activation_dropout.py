"""Dropout that goes with an activation: SELU's keeps the mean and the variance of its outputs."""

from collections.abc import Set
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from stablelightning.model.activation_names import is_activation
from stablelightning.model.activation_places import leaves_of
from stablelightning.model.structure import is_weight_layer

_CHANNELS: tuple[type[nn.Module], ...] = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ALPHA: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: nn.AlphaDropout,
    **{kind: nn.FeatureAlphaDropout for kind in _CHANNELS},
}
#: What changes a signal so much that SELU's mean and variance are gone.
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def match_dropout(
    model: nn.Module, *, left: Set[nn.Module], entered: Set[nn.Module]
) -> list[tuple[str, str, str]]:
    """Make dropout right after a SELU alpha dropout, and plain dropout where no SELU is any more.

    Args:
        model: changed in place.
        left: the SELU modules that were replaced; a set, empty where there were none.
        entered: the SELU modules that are there now.

    Returns:
        Path, class before and class after, of every dropout that was replaced.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.SELU(), nn.Dropout(0.1))
        >>> match_dropout(net, left=set(), entered={net[1]})
        [('2', 'Dropout', 'AlphaDropout')]
    """
    changes: dict[nn.Module, nn.Module] = {}
    activation: nn.Module | None = None
    dims = 2
    for leaf in leaves_of(model):
        if isinstance(leaf, _ConvNd):
            dims = len(leaf.kernel_size)
        if is_activation(leaf):
            activation = leaf
        elif is_weight_layer(leaf) or isinstance(leaf, _NORMS):
            activation = None
        elif activation in entered:
            _note(changes, leaf, _ALPHA.get(type(leaf)))
        elif left and activation is not None:
            _note(changes, leaf, _plain(leaf, dims))
    return [] if not changes else _replace(model, changes)


def _plain(leaf: nn.Module, dims: int) -> type[nn.Module] | None:
    if type(leaf) is nn.AlphaDropout:
        return nn.Dropout
    return _CHANNELS[dims - 1] if type(leaf) is nn.FeatureAlphaDropout else None


def _note(
    changes: dict[nn.Module, nn.Module], leaf: nn.Module, kind: type[nn.Module] | None
) -> None:
    if kind is not None:
        made: Any = kind
        changes[leaf] = made(leaf.p, leaf.inplace).train(leaf.training)


def _replace(model: nn.Module, changes: dict[nn.Module, nn.Module]) -> list[tuple[str, str, str]]:
    told = []
    for name, owner in model.named_modules():
        for key, child in list(owner._modules.items()):
            new = changes.get(child) if child is not None else None
            if child is not None and new is not None:
                owner._modules[key] = new
                path = f"{name}.{key}" if name else key
                told.append((path, type(child).__name__, type(new).__name__))
    return told
