"""Another activation for a whole model, in place."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.activation_calls import functional_activations
from stablelightning.model.activation_dropout import match_dropout
from stablelightning.model.activation_maxout import layer_before, maxout_of, why_not
from stablelightning.model.activation_names import (
    ActivationChoice,
    activation_choice,
    activation_name,
    functional_name,
    is_kind,
)
from stablelightning.model.activation_places import Place, find_places, leaves_of
from stablelightning.model.activation_rules import initialization_for
from stablelightning.model.activation_seen import activations_seen, could_be_activation
from stablelightning.model.defaults import default_parameters
from stablelightning.model.modules import modules_of

#: Why an activation is left as it is, by what it does.
_REASONS = {
    "output": "it shapes the output; see recommend_activation(position='output')",
    "gate": "it is a gate: what it gives is multiplied with other values",
    "recurrent": "it is part of a recurrent cell, whose state must stay bounded",
    "unclear": "it may be a gate or an output; give example= so that the flow of data tells",
}
#: In place, these keep their output for the backward pass, as do those that can take their place;
#: where others (SiLU, Hardswish) worked, an in-place operation may follow that overwrites it.
_KEEP_THEIR_OUTPUT = (nn.CELU, nn.ELU, nn.Hardtanh, nn.LeakyReLU, nn.ReLU, nn.RReLU, nn.SELU)

_FUNCTIONAL = "it is called as a function in forward; make it a module (self.act = nn.ReLU())"


@dataclass(frozen=True)
class Swapped:
    """One place that was changed: dotted ``path``, and the names ``before`` and ``after``."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Kept:
    """One activation that was left: dotted ``path``, its ``name``, and ``why``."""

    path: str
    name: str
    why: str


@dataclass
class ActivationSwap:
    """What :func:`swap_activations` did and did not do; ``print`` gives it as a table.

    Args:
        activation: the name of the new activation.
        initialization: which weights go with it, in words.
        swapped: the activations that were replaced.
        dropout: the dropout that was replaced with them.
        kept: the activations that were left, and why.
        parameters_before: number of parameters before.
        parameters_after: number of parameters after; PReLU and maxout add some.
    """

    activation: str
    initialization: str
    swapped: list[Swapped] = field(default_factory=list)
    dropout: list[Swapped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    parameters_before: int = 0
    parameters_after: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def rows_for_table(self) -> list[list[str]]:
        """Rows of path, before, after and remark, for a table."""
        rows = [[s.path, s.before, s.after, ""] for s in [*self.swapped, *self.dropout]]
        return rows + [[k.path, k.name, k.name, f"left: {k.why}"] for k in self.kept]

    def _grouped(self) -> list[list[str]]:
        """The rows, those that differ by their path only as one."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for path, *rest in self.rows_for_table():
            groups.setdefault(tuple(rest), []).append(path)
        return [
            [f"{first} and {len(more)} more" if more else first, *rest]
            for rest, (first, *more) in groups.items()
        ]

    def __str__(self) -> str:
        lines = [["module", "before", "after", ""], *self._grouped()]
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        text = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[3]])
            for line in lines
        ]
        told = [f"{self.activation}: {len(self.swapped)} swapped, {len(self.kept)} left."]
        if self.parameters_before != self.parameters_after:
            ratio = self.parameters_after / max(self.parameters_before, 1)
            told.append(
                f"Parameters: {self.parameters_before:,} before, {self.parameters_after:,} after "
                f"({ratio:.2f}x); make the optimizer afterwards."
            )
        told.append(f"Initialize it anew: {self.initialization}.")
        return "\n".join([*(line.rstrip() for line in text), *told])


def swap_activations(
    model: nn.Module,
    activation: str | Callable[[], nn.Module],
    *,
    example: Any = None,
    only: Collection[str] | None = None,
) -> ActivationSwap:
    """Give every hidden unit of a model another activation, in place; no weight is touched.

    Replaced are the modules that are activations (torch's, those like them in timm and torchvision,
    and with ``example`` any other that bends the output of a layer), wherever the model holds them,
    and functions like ``F.relu`` that it keeps in an attribute (as ``nn.TransformerEncoderLayer``
    does). A module that is held in several places is still one afterwards; training flags and hooks
    are kept, and ``inplace`` where it is safe.

    Left alone, and reported: outputs (a softmax or sigmoid at the end), gates, the inside of
    recurrent cells, and functions that a ``forward`` calls by itself.

    For SELU, dropout right after it becomes ``AlphaDropout``, which keeps its mean and variance; it
    is turned back when SELU is left. ``"maxout"`` makes one layer of every linear layer or
    convolution of a ``Sequential`` and its activation; a trained one that feeds a ReLU, leaky ReLU
    or PReLU computes afterwards what it computed before.

    Args:
        model: any module; changed in place. Not compiled.
        activation: a name of ``torch.nn`` or ``torch.nn.functional``, with arguments where wanted
            (``"leaky_relu(0.2)"``), ``"scaled_sigmoid"``, ``"maxout"`` or ``"maxout(3)"``, or what
            makes a module: a class, a function without arguments.
        example: inputs of one batch: a tensor, a tuple to spread or a dict of keywords. With it
            gates and outputs are told by the flow of data, not by structure and names.
        only: dotted paths of the activations to swap, whatever they do there; ``None`` is every
            hidden one.

    Returns:
        An :class:`ActivationSwap`, which says which initialization goes with the new activation;
        :func:`stablelightning.initialize` sets it.

    Raises:
        RecipeError: there is no such activation, or its arguments do not fit; ``only`` names what
            is no activation.
        DataError: the example does not fit the forward.
        ModelError: the model is compiled or scripted, or no module.

    Source:
        Klambauer et al. 2017, arXiv:1706.02515, section 3 (alpha dropout); Goodfellow et al. 2013,
        arXiv:1302.4389 (maxout, which can be any convex function of its inputs, a ReLU too).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
        >>> print(swap_activations(net, "selu"))
        module  before    after
        1       relu      selu
        2       Dropout   AlphaDropout
        selu: 1 swapped, 0 left.
        Initialize it anew: LeCun normal, std 1/sqrt(fan_in), zero biases.
    """
    choice = activation_choice(activation)
    _refuse_compiled(model)
    report = ActivationSwap(choice.name, initialization_for(choice.name))
    report.parameters_before = _parameters(model)
    places = find_places(model, example)
    hidden = [p for p in places if p.role == "hidden"]
    if only is not None:
        places, hidden = _named(model, places, only)
    report.kept += [Kept(p.path, _name(p), _why(p, only)) for p in places if p not in hidden]
    if choice.make is None:
        _swap_for_maxout(model, hidden, choice, report)
    else:
        before = {p.module for p in hidden if p.module is not None and is_kind(p.module, nn.SELU)}
        after = _swap(model, hidden, choice, report)
        changes = match_dropout(model, left=before, entered=after)
        report.dropout = [Swapped(*change) for change in changes]
    report.kept += [Kept(path, call, _FUNCTIONAL) for path, call in _functions(model, example)]
    report.parameters_after = _parameters(model)
    return report


def _functions(model: nn.Module, example: Any) -> list[tuple[str, str]]:
    """What forwards apply by themselves: read in their source, and seen where there is none."""
    read = functional_activations(model)
    told = {path for path, _ in read}
    seen = [] if example is None else activations_seen(model, example).functions
    kinds = {type(module) for path, module in model.named_modules() if path in told}
    return read + [s for s in seen if type(model.get_submodule(s[0])) not in kinds]


def _named(
    model: nn.Module, places: list[Place], only: Collection[str]
) -> tuple[list[Place], list[Place]]:
    """All places, and those of these paths: also modules that are no activation by their class."""
    there = {place.path: place for place in places}
    modules = dict(model.named_modules())
    for path in only:
        found = modules.get(path)
        if path not in there and found is not None and could_be_activation(found):
            owner, _, key = path.rpartition(".")
            there[path] = Place(path, modules[owner], key, found, None, "hidden")
    missing = [path for path in only if path not in there]
    if missing:
        near = get_close_matches(missing[0], there, n=3, cutoff=0)
        told = f"near it are {', '.join(near)}" if near else "the model has none"
        raise RecipeError(f"only must name activations of the model, got {missing[0]!r}; {told}.")
    return list(there.values()), [place for path, place in there.items() if path in only]


def _why(place: Place, only: Collection[str] | None) -> str:
    return _REASONS[place.role] if only is None else "it was not asked for"


def _swap(
    model: nn.Module, places: list[Place], choice: ActivationChoice, report: ActivationSwap
) -> set[nn.Module]:
    """Replace the modules and functions at these places; what is returned are the new ones."""
    assert choice.make is not None
    made: dict[nn.Module, nn.Module] = {}
    for place in places:
        old = place.module
        new = made.get(old) if old is not None else None
        if new is None:
            new = choice.make()
            _take_over(new, old, place.owner, model)
            if old is not None:
                made[old] = new
        report.swapped.append(Swapped(place.path, _name(place), choice.name))
        _put(place, new)
    for before, leaf in pairwise(leaves_of(model)):
        if before in made.values() and isinstance(leaf, _DropoutNd):
            vars(leaf)["inplace"] = False  # it would overwrite what the new one may keep
    for module in modules_of(model):
        if isinstance(module, nn.TransformerEncoder) and not all(
            getattr(layer, "activation_relu_or_gelu", 1) for layer in module.layers
        ):
            module.use_nested_tensor = False  # only the fused encoder takes nested tensors
    return {m for m in modules_of(model) if is_kind(m, nn.SELU)}


def _put(place: Place, new: nn.Module) -> None:
    if place.module is not None:
        place.owner._modules[place.key] = new  # in its old position among its siblings
    else:
        setattr(place.owner, place.key, new)
    if isinstance(place.owner, nn.TransformerEncoderLayer):
        # Torch's fused encoder would go on computing what it was built for.
        is_gelu = isinstance(new, nn.GELU) and new.approximate == "none"
        place.owner.activation_relu_or_gelu = 1 if type(new) is nn.ReLU else 2 if is_gelu else 0


def _take_over(new: nn.Module, old: nn.Module | None, owner: nn.Module, model: nn.Module) -> None:
    """Give a new module what the old one had besides its function."""
    new.train(owner.training if old is None else old.training)
    if old is not None:
        if hasattr(new, "inplace") and isinstance(old, _KEEP_THEIR_OUTPUT):
            vars(new)["inplace"] = old.inplace
        for name, value in vars(old).items():
            if "_hooks" in name and value:
                vars(new)[name] = value
    near = next(owner.parameters(), None)
    near = next(model.parameters(), None) if near is None else near
    if near is not None and near.is_floating_point():
        new.to(device=near.device, dtype=near.dtype)


def _swap_for_maxout(
    model: nn.Module, places: list[Place], choice: ActivationChoice, report: ActivationSwap
) -> None:
    uses: dict[nn.Module, int] = {}
    for owner in modules_of(model):
        for child in owner._modules.values():
            if child is not None:
                uses[child] = uses.get(child, 0) + 1
    verdicts = default_parameters(model)
    for place in places:
        fresh = False
        found = layer_before(place.owner, place.key)
        if found is None or place.module is None:
            reason = "maxout takes a layer and its activation, side by side in a Sequential"
        else:
            key, layer = found
            weight = f"{place.path.removesuffix(place.key)}{key}.weight"
            fresh = weight in verdicts and verdicts[weight].default
            reason = why_not(layer, place.module, uses=uses[layer], fresh=fresh) or ""
        if reason or found is None or place.module is None:
            report.kept.append(Kept(place.path, _name(place), reason))
            continue
        made = maxout_of(layer, place.module, choice.pieces, fresh=fresh)
        path = place.path.removesuffix(place.key)
        report.swapped.append(Swapped(f"{path}{key}", type(layer).__name__, choice.name))
        report.swapped.append(Swapped(place.path, _name(place), "nothing"))
        place.owner._modules[key] = made
        # Something must stay there, or the layers behind it would change their names.
        place.owner._modules[place.key] = nn.Identity().train(place.module.training)


def _name(place: Place) -> str:
    if place.module is not None:
        return activation_name(place.module)
    return functional_name(place.function) or ""


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not is_lazy(p))


def _refuse_compiled(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if scripted or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ModelError(
                f"activations must be swapped before torch.compile or scripting, and "
                f"{name or 'this model'} has been through it; swap first and compile then."
            )
