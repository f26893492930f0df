"""Whether a network ends in a classifier, and taking it off where it does."""

from collections.abc import Iterator

from torch import nn

from stablelightning.errors import ModelError
from stablelightning.model.head import RemovedHead, put_back, remove_head
from stablelightning.model.structure import find_heads, weight_layers
from stablelightning.nn.heads import GaussianHead

#: What may stand behind a classifier. Anything else makes features of what the layer gives.
_BEHIND_A_HEAD = (
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
    nn.LogSoftmax,
    nn.Sigmoid,
    nn.Softmax,
    nn.Unflatten,
)
#: What torchvision and timm call a classifier.
_HEAD_NAMES = ("fc", "head", "heads", "classifier")


def take_head_off(network: nn.Module) -> RemovedHead | None:
    """Put an ``nn.Identity`` in the place of a network's classifier, if it has one.

    A classifier is what torchvision and timm call so, or else a linear layer at the very end; a
    last layer with an activation, a norm or a pooling behind it gives features.

    Args:
        network: changed in place.

    Returns:
        The head and its name; ``None`` where the network gives features already.

    Raises:
        ModelError: the network has no layer with weights, or several heads.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> take_head_off(net).name
        '2'
        >>> print(take_head_off(net))
        None
    """
    if not weight_layers(network):
        raise ModelError(
            f"there must be weights to pretrain, and {type(network).__name__} has none; pass the "
            "network itself."
        )
    names = {module: name for name, module in network.named_modules()}
    heads = find_heads(network)
    if not all(_is_classifier(network, head, names[head]) for head in heads):
        return None
    head, name = remove_head(network)
    home = name.rpartition(".")[0]
    around = network.get_submodule(home)
    if home and isinstance(around, GaussianHead):  # mean and variance go together
        put_back(network, head, name)
        put_back(network, nn.Identity().train(around.training), home)
        return RemovedHead(around, home)
    return RemovedHead(head, name)


def _is_classifier(network: nn.Module, head: nn.Module, name: str) -> bool:
    if not name:  # the network is this one layer
        return False
    if any(part in _HEAD_NAMES for part in name.split(".")):
        return True
    behind = _leaves_behind(network, head)
    return isinstance(head, nn.Linear) and all(isinstance(m, _BEHIND_A_HEAD) for m in behind)


def _leaves_behind(network: nn.Module, head: nn.Module) -> Iterator[nn.Module]:
    seen = False
    for module in network.modules():
        if seen and not any(True for _ in module.children()):
            yield module
        seen = seen or module is head
