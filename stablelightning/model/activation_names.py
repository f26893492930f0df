"""Activations by name: ``"selu"``, ``"leaky_relu(0.2)"``, a class or a factory of modules."""

import ast
import inspect
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.functional.activations import check_pieces
from stablelightning.nn.activations import Maxout, ScaledSigmoid

#: What turns a linear layer and its activation into one :class:`~stablelightning.nn.Maxout` layer.
MAXOUT = "maxout"

#: torch lists these as activations, and they mix, halve or weigh: no function of one number each.
_NOT_ELEMENTWISE = (
    nn.GLU,
    nn.MultiheadAttention,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.LogSoftmax,
)

#: Needs two numbers that nobody can guess, and has no use in a hidden layer.
_WITHOUT_DEFAULTS = (nn.Threshold,)

_ALIASES = {"swish": nn.SiLU}

#: Parts of the class names of other packages that say how, and not which (``SwishMe``, ``NewGELU``,
#: ``GELUTanh``).
_AFFIXES = re.compile(r"activation|^quick|^new|^fast|^pytorch|me$|(?<=gelu)tanh$")


@dataclass(frozen=True)
class ActivationChoice:
    """An activation that was asked for.

    Args:
        name: as it is written in reports and understood again, such as ``"leaky_relu(0.2)"``.
        make: makes one; ``None`` for maxout, which takes a whole layer.
        pieces: those of maxout, else 0.
    """

    name: str
    make: Callable[[], nn.Module] | None
    pieces: int = 0


def activation_choice(wanted: str | Callable[[], nn.Module]) -> ActivationChoice:
    """Read what was asked for.

    Args:
        wanted: a name of ``torch.nn`` or ``torch.nn.functional`` (``"SELU"``, ``"leaky_relu"``),
            ``"scaled_sigmoid"``, or ``"maxout"``, each with arguments where wanted:
            ``"leaky_relu(0.2)"``, ``"elu(alpha=0.5)"``, ``"maxout(3)"``; or a class or function
            that makes a module, or a module that is copied to every place.

    Raises:
        RecipeError: there is no such activation (the nearest names are told), or its arguments do
            not fit.

    Example:
        >>> activation_choice("LeakyReLU(negative_slope=0.2)").name
        'leaky_relu(0.2)'
        >>> activation_choice(nn.GELU).make()
        GELU(approximate='none')
    """
    if not isinstance(wanted, str):
        return _from_factory(wanted)
    name, positional, named = _parsed(wanted)
    if _normal(name) == MAXOUT:
        return _maxout(wanted, positional, named)
    kind = _kinds().get(_normal(name))
    if kind is None:
        raise RecipeError(_unknown(wanted))
    try:
        sample = kind(*positional, **named)
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(
            f"{name} must be given the arguments of {kind.__name__}, got {wanted!r} ({error}); "
            f"they are {', '.join(_parameters(kind)) or 'none'}."
        ) from error
    return ActivationChoice(activation_name(sample), lambda: kind(*positional, **named))


def activation_name(module: nn.Module) -> str:
    """The name of an activation module, with the arguments that differ from its defaults.

    Example:
        >>> activation_name(nn.LeakyReLU(0.2)), activation_name(nn.Hardswish(inplace=True))
        ('leaky_relu(0.2)', 'hardswish')
    """
    if isinstance(module, Maxout):
        return _maxout_name(module.pieces)
    kind = _torch_kind(module)
    if kind is None:
        return type(module).__name__
    given: list[str] = []
    parameters = _parameters(kind)
    for position, (name, default) in enumerate(parameters.items()):
        value = getattr(module, name, default)
        if value != default and name != "num_parameters":
            given.append(f"{value!r}" if position == len(given) else f"{name}={value!r}")
    return _function_name(kind) + (f"({', '.join(given)})" if given else "")


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is an activation: an element-wise function, torch's or one like it.

    Classes of other packages are known by their names (``SwishMe``, ``QuickGELU``), if they hold no
    other module and no matrix.

    Example:
        >>> is_activation(nn.GELU()), is_activation(nn.Softmax(dim=-1)), is_activation(nn.ReLU6())
        (True, False, True)
    """
    if isinstance(module, (*_NOT_ELEMENTWISE, Maxout)):
        return False
    if isinstance(module, tuple(_kinds().values()) + _WITHOUT_DEFAULTS):
        return True
    if next(module.children(), None) is not None:
        return False
    return known_name(type(module).__name__) and all(p.ndim <= 1 for p in module.parameters())


def known_name(name: str) -> bool:
    """Whether a class or function of that name is an activation.

    Example:
        >>> known_name("QuickGELU"), known_name("leaky_relu"), known_name("Linear")
        (True, True, False)
    """
    bare = _AFFIXES.sub("", _normal(name))
    return bare in _kinds() or bare == "hardmish"


def functional_name(function: Any) -> str | None:
    """The name of a function like ``F.relu``, or a partial of one, that is an activation.

    Example:
        >>> functional_name(F.gelu), functional_name(len)
        ('gelu', None)
    """
    inner = getattr(function, "func", function)
    home = getattr(inner, "__module__", None) or ""
    name = getattr(inner, "__name__", "")
    if inspect.isclass(inner) or not callable(inner) or not name:
        return None
    is_torchs = home.startswith("torch") or getattr(torch, name, None) is inner
    is_torchs = is_torchs or getattr(F, name, None) is inner
    return name if is_torchs and known_name(name) else None


def is_kind(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``module`` is of these classes, or of a class of another package named like them.

    Example:
        >>> is_kind(nn.SiLU(), nn.SiLU, nn.Mish)
        True
    """
    return _torch_kind(module) in kinds or isinstance(module, kinds)


@cache
def _kinds() -> dict[str, type[nn.Module]]:
    listed = [getattr(nn, name) for name in nn.modules.activation.__all__]
    left_out = _NOT_ELEMENTWISE + _WITHOUT_DEFAULTS
    kinds = {_normal(k.__name__): k for k in [*listed, ScaledSigmoid] if k not in left_out}
    return {**kinds, **_ALIASES}


def _torch_kind(module: nn.Module) -> type[nn.Module] | None:
    for kind in _kinds().values():
        if type(module) is kind:
            return kind
    return _kinds().get(_AFFIXES.sub("", _normal(type(module).__name__)))


def _function_name(kind: type[nn.Module]) -> str:
    if kind is ScaledSigmoid:
        return "scaled_sigmoid"
    same = [n for n in dir(F) if _normal(n) == _normal(kind.__name__) and n.islower()]
    return min(same, key=len) if same else kind.__name__.lower()


def _parameters(kind: type[nn.Module]) -> dict[str, Any]:
    """The settings of an activation with their defaults; where memory lies is none of them."""
    found = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in found if p.name not in ("inplace", "device", "dtype")}


def _normal(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _parsed(wanted: str) -> tuple[str, list[Any], dict[str, Any]]:
    name, bracket, _ = wanted.partition("(")
    if not bracket:
        return wanted.strip(), [], {}
    try:
        call = ast.parse("f(" + wanted.strip()[len(name) + 1 :], mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("not a call")
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return name.strip(), [ast.literal_eval(a) for a in call.args], named
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"an activation must be written as its name and, where wanted, plain arguments in "
            f"brackets, got {wanted!r}; such as 'leaky_relu(0.2)'."
        ) from error


def _maxout(wanted: str, positional: list[Any], named: dict[str, Any]) -> ActivationChoice:
    given = [*positional, *([named["pieces"]] if "pieces" in named else [])]
    if len(given) > 1 or set(named) - {"pieces"}:
        raise RecipeError(f"maxout takes its pieces alone, got {wanted!r}; write 'maxout(3)'.")
    pieces = given[0] if given else 2
    check_pieces(pieces)
    return ActivationChoice(_maxout_name(pieces), None, pieces)


def _maxout_name(pieces: int) -> str:
    return MAXOUT if pieces == 2 else f"{MAXOUT}({pieces})"


def _from_factory(wanted: Any) -> ActivationChoice:
    template = wanted if isinstance(wanted, nn.Module) else None
    if template is None:
        if not callable(wanted):
            raise RecipeError(
                f"an activation must be a name such as 'selu' or something that makes a module, "
                f"got {wanted!r}; pass nn.SELU itself."
            )
        try:
            template = wanted()
        except TypeError as error:
            raise RecipeError(
                f"an activation's factory must need no arguments, and {wanted!r} does ({error}); "
                "wrap it in functools.partial or a lambda."
            ) from error
    if not isinstance(template, nn.Module) or isinstance(template, _NOT_ELEMENTWISE):
        raise RecipeError(
            f"an activation must be a module that acts on every element by itself, got "
            f"{type(template).__name__}; it would change shapes or mix elements."
        )
    copied = template
    make = (lambda: deepcopy(copied)) if template is wanted else wanted
    return ActivationChoice(activation_name(template), make)


def _unknown(wanted: str) -> str:
    name = _normal(wanted.partition("(")[0])
    names = {_normal(k): _function_name(kind) for k, kind in _kinds().items()} | {MAXOUT: MAXOUT}
    near = [names[match] for match in get_close_matches(name, names, n=3, cutoff=0.5)]
    excluded = {_normal(k.__name__): k for k in _NOT_ELEMENTWISE + _WITHOUT_DEFAULTS}
    if name in excluded:
        return (
            f"an activation must act on every element by itself, and {wanted} does not; hidden "
            "layers take relu, gelu, selu and the like."
        )
    nearest = (
        f"did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?"
        if near
        else (f"there are {', '.join(sorted(set(names.values())))}.")
    )
    return f"activation must be one that torch or this package has, got {wanted!r}; {nearest}"
