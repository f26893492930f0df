"""Fresh weights for part of a network, and every other value as it was, to the bit."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from stablelightning.errors import RecipeError
from stablelightning.functional.initialize import truncated_normal_
from stablelightning.model.depth import DepthGroup
from stablelightning.model.initialize import initialize_called
from stablelightning.model.inputs import leading_inputs
from stablelightning.model.schemes import scheme_named

#: What modules of torch and of users call the method that fills them as their constructor does.
_RESETS = ("reset_parameters", "reset_running_stats", "_reset_parameters")
#: Standard deviation of parameters that no module knows to draw: tokens, positions, layer scales.
_UNKNOWN_STD = 0.02
#: ``nn.Linear`` and the convolutions draw by He's rule for a leaky slope of this.
_DEFAULT_SLOPE = math.sqrt(5)


def redraw(model: nn.Module, groups: Sequence[DepthGroup], *, example: Any = None) -> list[str]:
    """Draw some depth groups of a network anew, as if their layers had just been made.

    Layers are filled as torch's constructors do, and norms forget their running statistics; with an
    example the rules of :func:`stablelightning.initialize` follow, for what each layer feeds. All
    other parameters and buffers keep every bit, also those that lie in the same module or are
    shared with it. Shapes, flags, ``requires_grad`` and the identity of every tensor stay.

    Args:
        model: any module; changed in place. Numbers come from torch's default generator.
        groups: of :func:`~stablelightning.model.depth.depth_groups` of this model.
        example: what the forward takes, a few dozen rows; ``None`` leaves torch's own draws.

    Returns:
        Names of parameters that no layer knows how to draw, such as a learned token or a layer
        scale: they are small now, with a standard deviation of 0.02.

    Raises:
        RecipeError: the groups are those of another model.
        DataError: the example does not fit the forward.

    Source:
        Yosinski et al. 2014, arXiv:1411.1792 (which layers of a network are worth keeping).

    Example:
        >>> from stablelightning.model.depth import depth_groups
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> first, second = net[0].weight.clone(), net[2].weight.clone()
        >>> redraw(net, depth_groups(net)[1:], example=torch.randn(8, 4))
        []
        >>> torch.equal(net[0].weight, first), torch.equal(net[2].weight, second)
        (True, False)
    """
    known = dict(model.named_parameters())
    parameters = [name for group in groups for name in group.parameters]
    for name in parameters:
        if name not in known:
            raise RecipeError(
                f"groups must be those of {type(model).__name__}, and it has no parameter "
                f"{name!r}; depth_groups(model) finds them."
            )
    chosen = {id(known[name]) for name in parameters}
    whole = {name for group in groups for name in group.modules}
    whole |= {name for name, module in model.named_modules() if _is_inside(module, chosen)}
    with torch.inference_mode(False), torch.no_grad(), _others_kept(model, whole, chosen):
        unknown = []
        for name, module in model.named_modules():
            unknown += _fill(name, module, chosen, reset=name in whole)
    if example is not None:
        inputs = leading_inputs(model, example)
        initialize_called(model, inputs, scheme=scheme_named("auto"), only=set(parameters))
    return unknown


@contextmanager
def _others_kept(model: nn.Module, whole: set[str], chosen: set[int]) -> Iterator[None]:
    """Write back what a module's own reset wrote beside what was wanted."""
    modules = [module for name, module in model.named_modules() if name in whole]
    beside = {id(p): p for m in modules for p in m.parameters() if id(p) not in chosen}
    kept = [(p, p.detach().clone()) for p in beside.values() if not is_lazy(p)]
    yield
    for parameter, content in kept:
        if not torch.equal(parameter, content):
            parameter.copy_(content)


def _is_inside(module: nn.Module, chosen: set[int]) -> bool:
    """Whether something of a module itself is chosen, and all that lies deeper.

    A weight that it shares with a part that is kept makes no difference.
    """
    own = [p for p in module.parameters(recurse=False) if id(p) in chosen]
    inner = [p for child in module.children() for p in child.parameters()]
    return bool(own) and all(id(p) in chosen for p in inner)


def _fill(name: str, module: nn.Module, chosen: set[int], *, reset: bool) -> list[str]:
    if isinstance(module, parametrize.ParametrizationList):
        return []  # the layer that it belongs to draws it
    own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) in chosen}
    own = {n: p for n, p in own.items() if not is_lazy(p)}
    for parameter in own.values():
        parameter.fill_(math.nan)  # a mark that no draw leaves
    for method in _RESETS if reset else ():
        if callable(getattr(module, method, None)):
            getattr(module, method)()
            break
    _draw_parametrized(module, chosen)
    unknown = [local for local, parameter in own.items() if bool(parameter.isnan().any())]
    for local in unknown:
        truncated_normal_(own[local], _UNKNOWN_STD)
    return [f"{name}.{local}" if name else local for local in unknown]


def _draw_parametrized(module: nn.Module, chosen: set[int]) -> None:
    """A parametrized weight is computed: it is drawn through what computes it."""
    if not parametrize.is_parametrized(module):
        return
    lists: Any = module.parametrizations
    for local, inside in lists.items():
        parameters = list(inside.parameters())
        if not parameters or not all(id(p) in chosen for p in parameters):
            continue
        weight = getattr(module, local)
        if weight.ndim >= 2:
            fresh = nn.init.kaiming_uniform_(torch.empty_like(weight), a=_DEFAULT_SLOPE)
            setattr(module, local, fresh)
