"""A new head for a network that was trained for something else; the rest stays to the bit."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from stablelightning.checks import check_whole
from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from stablelightning.functional.initialize import Layout, glorot_
from stablelightning.model.depth import DepthGroup, depth_groups
from stablelightning.model.dropout import AddedDropout, added_dropouts
from stablelightning.model.inputs import runner
from stablelightning.model.redraw import redraw
from stablelightning.model.structure import find_heads
from stablelightning.nn.heads import GaussianHead, QuantileHead

_Layer = nn.Linear | _ConvNd


def replace_head(
    model: nn.Module,
    num_outputs: int,
    keep_layers: int | None = None,
    *,
    dropout: float = 0.0,
    example: Any = None,
) -> nn.Module:
    """Give a network a fresh head of another size, in place, and keep the rest to the bit.

    The classifier of any model of torchvision or timm, the last layer of a plain ``Sequential``,
    both heads of a distilled transformer, the network inside a LightningModule. The new layer is of
    the same kind as the old one, with a bias, under the same name, so that keys of the state dict
    stay; its weights are drawn for a linear output (Glorot, bias zero), on the old one's device.

    With ``keep_layers`` what lies between the kept layers and the head is drawn anew, too: the
    upper layers of a pretrained network fit its own task best, and the lower ones any.

    Args:
        model: changed in place; not compiled. Its parameters change: make the optimizer afterwards.
        num_outputs: classes, or numbers to predict, >= 1.
        keep_layers: keep so many depth groups from the input up
            (:func:`~stablelightning.model.depth.depth_groups`) and draw those above anew, from 0
            (nothing is kept) to the number of groups below the head; ``None`` keeps them all.
        dropout: rate before the new head, in [0, 1), so that Monte Carlo dropout samples the head
            alone, at about the cost of one pass. An ``nn.Dropout`` that stands there takes this
            rate. 0 leaves what is there: what :func:`~stablelightning.add_dropout` put before the
            old head goes to the new one.
        example: what the forward takes, a few dozen rows on the model's device, or a batch. With it
            heads and depth groups are found by the flow of data, and fresh layers drawn by the
            rules of :func:`stablelightning.initialize` for what they feed; without it by convention
            and as torch's constructors draw.

    Returns:
        ``model`` itself.

    Raises:
        RecipeError: ``num_outputs``, ``keep_layers`` or ``dropout`` is out of range.
        ModelError: there is no head, or it is the model itself, or no layer that could be made
            anew, or the model is compiled or scripted.
        DataError: the example does not fit the forward.

    Source:
        Yosinski et al. 2014, arXiv:1411.1792 (how many layers transfer); Razavian et al. 2014,
        arXiv:1403.6382.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000))
        >>> kept = net[0].weight.clone()
        >>> replace_head(net, 3, dropout=0.2)[2]
        Linear(
          in_features=8, out_features=3, bias=True
          (added_dropout): AddedDropout(p=0.2)
        )
        >>> torch.equal(net[0].weight, kept)
        True
    """
    _check_settings(num_outputs, keep_layers, dropout)
    _refuse_compiled(model)
    run = None if example is None else runner(model, example)
    heads = _heads(model, run)
    anew = [] if keep_layers is None else _above(depth_groups(model, run), keep_layers)
    rates = {name.rpartition(".")[0]: d.p for name, d in added_dropouts(model).items()}
    fresh = []
    for name, old in heads.items():
        new = _fresh(old, _width(model, name, old, num_outputs))
        new.train(old.training)
        put_back(model, new, name)
        rate = dropout or rates.get(name, 0.0)
        before = _dropout_before(model, name)
        if before is not None and dropout:
            before.p = dropout
        elif rate:
            dims = len(old.kernel_size) if isinstance(old, _ConvNd) else 0
            widths = [old.in_channels] if isinstance(old, _ConvNd) else []
            AddedDropout(rate, dims=dims, widths=widths).drop_input_of(new)
        fresh.append(_group(name, new))
    _warn_of(redraw(model, [*anew, *fresh], example=example))
    if example is None:
        for name in heads:
            _draw_for_linear_output(model.get_submodule(name))
    return model


class RemovedHead(NamedTuple):
    """What :func:`remove_head` took out.

    Example:
        >>> RemovedHead(nn.Linear(1, 1), "fc").name
        'fc'
    """

    head: nn.Module
    name: str


def remove_head(model: nn.Module, example: Any = None) -> RemovedHead:
    """Take the head out, in place, so that the network gives features; they go through as they are.

    Args:
        model: changed in place: an ``nn.Identity`` stands where the head was.
        example: what the forward takes, so that the head is found by the flow of data.

    Returns:
        The head and its dotted name, for :func:`put_back`.

    Raises:
        ModelError: there is no head or more than one, or it is the model itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> head, name = remove_head(net)
        >>> net(torch.zeros(5, 4)).shape, name
        (torch.Size([5, 8]), '2')
        >>> put_back(net, head, name)(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """
    _refuse_compiled(model)
    found = _named_heads(model, None if example is None else runner(model, example))
    if len(found) > 1:
        raise ModelError(
            f"features need a network with one head, and {type(model).__name__} has "
            f"{len(found)} ({', '.join(found)}); take them out by hand."
        )
    ((name, head),) = found.items()
    put_back(model, nn.Identity().train(head.training), name)
    return RemovedHead(head, name)


def put_back(model: nn.Module, head: nn.Module, name: str) -> nn.Module:
    """Put a module where the one of that name is, wherever the model holds it.

    Args:
        model: changed in place.
        head: what comes there.
        name: dotted name of what is there now.

    Returns:
        ``model`` itself.

    Raises:
        RecipeError: there is no module of that name.

    Example:
        >>> put_back(nn.Sequential(nn.ReLU()), nn.GELU(), "0")[0]
        GELU(approximate='none')
    """
    there = dict(model.named_modules()).get(name)
    if there is None or not name:
        raise RecipeError(
            f"name must be that of a module inside {type(model).__name__}, got {name!r}; "
            "remove_head gives it."
        )
    for home in list(model.modules()):
        for local, child in list(home._modules.items()):
            if child is there:
                setattr(home, local, head)
    return model


# ---- what is found ----------------------------------------------------------------------------


def _named_heads(model: nn.Module, run: Callable[[], Any] | None) -> dict[str, nn.Module]:
    found = find_heads(model, run)
    heads = {name: m for name, m in model.named_modules() if any(m is head for head in found)}
    if "" in heads:
        raise ModelError(
            f"a head is replaced inside a network, and this {type(model).__name__} is the head "
            "itself; make a new one, or pass the network around it."
        )
    return heads


def _heads(model: nn.Module, run: Callable[[], Any] | None) -> dict[str, _Layer]:
    heads: dict[str, _Layer] = {}
    for name, head in _named_heads(model, run).items():
        plain = isinstance(head, _Layer) and (
            not isinstance(head, _ConvTransposeNd) and getattr(head, "groups", 1) == 1
        )
        if not plain or any(map(is_lazy, head.parameters())):
            kind = type(head).__name__
            why = "a lazy layer; pass an example" if plain else f"a {kind}; replace it by hand"
            raise ModelError(
                f"a head must be a linear layer or a convolution with known sizes, and {name} of "
                f"{type(model).__name__} is {why}."
            )
        assert isinstance(head, _Layer)
        heads[name] = head
    if len({_outputs(head) for head in heads.values()}) > 1:
        sizes = ", ".join(f"{name}: {_outputs(head)}" for name, head in heads.items())
        raise ModelError(
            f"heads of different sizes do not give the same thing, got {sizes}; replace them by "
            "hand, or pass an example by which the head is found."
        )
    return heads


def _above(groups: list[DepthGroup], keep_layers: int) -> list[DepthGroup]:
    *body, _ = groups
    if keep_layers > len(body):
        names = ", ".join(group.name for group in body)
        raise RecipeError(
            f"keep_layers must be at most {len(body)}, the number of depth groups below the head "
            f"({names}), got {keep_layers}; leave it out to keep them all."
        )
    return body[keep_layers:]


def _outputs(head: _Layer) -> int:
    return head.out_channels if isinstance(head, _ConvNd) else head.out_features


# ---- what is made -----------------------------------------------------------------------------


def _width(model: nn.Module, name: str, old: _Layer, num_outputs: int) -> int:
    """How many numbers the layer gives, and what the modules around it say of that."""
    home = model.get_submodule(name.rpartition(".")[0])
    if isinstance(home, GaussianHead | QuantileHead):
        home.out_features = num_outputs
        return num_outputs * (2 if isinstance(home, GaussianHead) else 3)
    path = name.split(".")[:-1]
    for depth in range(len(path) + 1):
        around = model.get_submodule(".".join(path[:depth]))
        # What timm and torchvision remember of their classifier.
        if vars(around).get("num_classes") == _outputs(old):
            vars(around)["num_classes"] = num_outputs
    return num_outputs


def _fresh(old: _Layer, outputs: int) -> _Layer:
    weight: Tensor = old.weight
    # Where this is asked for inside of inference mode, the new layer is to be trained all the same.
    with torch.inference_mode(False):
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        new: _Layer
        if isinstance(old, _ConvNd):
            kind: Any = next(k for k in type(old).__mro__ if k in _CONVOLUTIONS)
            shape = (old.in_channels, outputs, old.kernel_size)
            settings = {n: getattr(old, n) for n in ("stride", "padding", "dilation")}
            new = kind(*shape, **settings, padding_mode=old.padding_mode, **like)
        else:
            new = nn.Linear(old.in_features, outputs, **like)
    return new


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _draw_for_linear_output(head: nn.Module) -> None:
    weight, bias = head.weight, head.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    if not weight.is_meta:
        glorot_(weight, fans=Layout.of(head).fans(weight))
        with torch.no_grad():
            bias.zero_()


def _warn_of(unknown: list[str]) -> None:
    if unknown:
        message = (
            f"{len(unknown)} parameters that are drawn anew have no layer that knows how, first of "
            f"all {unknown[0]}; they are small random numbers now."
        )
        warnings.warn(message, StableLightningWarning, stacklevel=3)


def _dropout_before(model: nn.Module, name: str) -> nn.Dropout | None:
    """The dropout that stands right before a layer of a ``Sequential``."""
    home, _, local = name.rpartition(".")
    parent = model.get_submodule(home)
    if not isinstance(parent, nn.Sequential):
        return None
    names = list(parent._modules)
    place = names.index(local)
    before = parent._modules[names[place - 1]] if place else None
    return before if isinstance(before, nn.Dropout) else None


def _group(name: str, head: nn.Module) -> DepthGroup:
    parameters = tuple(f"{name}.{local}" for local, _ in head.named_parameters())
    return DepthGroup(name, parameters, (name,))


# ---- what is refused --------------------------------------------------------------------------


def _check_settings(num_outputs: int, keep_layers: int | None, dropout: float) -> None:
    check_whole("num_outputs", num_outputs, least=1)
    if keep_layers is not None:
        check_whole("keep_layers", keep_layers, least=0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise RecipeError(f"dropout must be a rate in [0, 1), got {dropout!r}; 0 adds none.")


def _refuse_compiled(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; pass the network."
        )
    for name, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if compiled or isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"a head must be replaced before torch.compile or scripting, and "
                f"{name or 'this model'} is made already; pass the original, and compile then."
            )
