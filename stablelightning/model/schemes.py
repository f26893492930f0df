"""Schemes: how the weights of a layer are drawn, given what consumes its output.

A scheme is a rule for one layer alone, a choice of the plain stacks that are mirrored instead, and
whether data scales the result. Rules follow the properties of the function, not its name.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stablelightning.errors import ModelError, RecipeError
from stablelightning.functional.initialize import (
    Layout,
    glorot_,
    he_,
    lecun_,
)
from stablelightning.functional.orthogonal import delta_orthogonal_, orthogonal_
from stablelightning.functional.properties import Properties, properties_of
from stablelightning.functional.quadrature import Scalar
from stablelightning.model.attribution import LayerRole

#: Consumers that are linear to the layer before them, or normalise themselves.
_BY_GLOROT = {
    "linear": "its output is read as it is",
    "softmax": "its output goes to a softmax",
    "attention": "its output goes to attention",
    "recurrent": "its output goes to a recurrent layer",
}


@dataclass(frozen=True)
class Layer:
    """One layer as a rule sees it.

    Args:
        role: its place in the network.
        properties: of the function that consumes its output; ``None`` where there is none.
        layout: of its weight.
        note: why there are no properties although there is a function; "" otherwise.
    """

    role: LayerRole
    properties: Properties | None
    layout: Layout
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """What shall be drawn.

    Args:
        distribution: in words.
        gain: on ``1 / sqrt(fan)``.
        why: in words.
        write: fills a weight in place.
    """

    distribution: str
    gain: float
    why: str
    write: Callable[[Tensor], object]


# ---- rules for one layer ----------------------------------------------------------------------


def by_property(layer: Layer) -> Rule:
    """LeCun before a self-normalizing function, Glorot before a bounded one, He before others.

    Layers whose output is read as it is, and those that make the model's output, get Glorot.
    """
    found, role = layer.properties, layer.role
    if role.is_output and (found is None or not found.self_normalizing):
        return glorot_rule(layer, "its output leaves the model")
    if found is None:
        why = layer.note or _BY_GLOROT.get(role.consumer.name, "")
        if role.consumer.name == "gate":
            return lecun_rule(layer, "a factor of a gated product: gain 1")
        return glorot_rule(layer, why or "no function of one number consumes its output")
    name = role.consumer.name
    if found.self_normalizing:
        return lecun_rule(layer, f"{name} keeps mean 0 and variance 1 by itself")
    if found.bounded:
        return glorot_rule(layer, f"{name} is bounded")
    if not math.isfinite(found.forward_gain):
        return glorot_rule(layer, f"{name} passes nothing on: no gain makes up for it")
    return he_rule(layer, f"1/sqrt(E[f(z)^2]) of {name} is {found.forward_gain:.4g}")


def glorot_rule(layer: Layer, why: str = "as asked for") -> Rule:
    """Glorot uniform."""
    return Rule(
        "Glorot uniform",
        1.0,
        why,
        lambda weight: glorot_(weight, fans=layer.layout.fans(weight)),
    )


def lecun_rule(layer: Layer, why: str = "as asked for") -> Rule:
    """LeCun normal."""
    return Rule(
        "LeCun normal", 1.0, why, lambda weight: lecun_(weight, fans=layer.layout.fans(weight))
    )


def he_rule(layer: Layer, why: str = "as asked for") -> Rule:
    """He normal with the exact gain of the consumer; 1 where it has none."""
    gain = _forward_gain(layer)
    return Rule(
        "He normal",
        gain,
        why,
        lambda weight: he_(weight, fans=layer.layout.fans(weight), gain=gain),
    )


def orthogonal_rule(layer: Layer, why: str = "as asked for") -> Rule:
    """Orthogonal with the exact gain of the consumer, in the centre of a kernel of stride one.

    A bounded function has no gain here: orthogonal weights keep its slope of one at zero alive
    over any depth, and a gain above one would make gradients explode.
    """
    found = layer.properties
    gain = 1.0 if found is not None and found.bounded else _forward_gain(layer)
    if _has_centre(layer):
        return Rule(
            "delta-orthogonal",
            gain,
            why,
            lambda weight: delta_orthogonal_(weight, gain=gain, layout=layer.layout),
        )
    return Rule(
        "orthogonal", gain, why, lambda weight: orthogonal_(weight, gain=gain, layout=layer.layout)
    )


def _forward_gain(layer: Layer) -> float:
    found = layer.properties
    if found is None or layer.role.is_output or not math.isfinite(found.forward_gain):
        return 1.0
    return found.forward_gain


def _has_centre(layer: Layer) -> bool:
    """Whether a kernel's centre alone may carry the signal: no stride, no pixel left out."""
    return layer.role.kind == "conv" and all(step == 1 for step in layer.layout.stride)


# ---- which stacks become isometries -----------------------------------------------------------

#: From this many weights on a plain stack is made an isometry: beyond it, random weights make the
#: outputs for different inputs nearly the same, whatever their gain.
DEEP = 20
#: The same where the function is far from centred (sigmoid): the mean drowns the signal sooner.
_DEEP_UNCENTRED = 5
#: Share of the mean square that the mean makes up.
_UNCENTRED = 0.8


def deep_stacks(depth: int, functions: list[Properties]) -> bool:
    """Stacks beyond 20 weights; sooner where every function is all mean."""
    uncentred = all(f.mean**2 > _UNCENTRED * f.mean_square for f in functions)
    return depth > (_DEEP_UNCENTRED if uncentred else DEEP)


def any_stack(depth: int, functions: list[Properties]) -> bool:
    """Every plain stack."""
    return True


def no_stack(depth: int, functions: list[Properties]) -> bool:
    """None."""
    return False


# ---- by name ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scheme:
    """How a model is initialized.

    Args:
        name: what the report calls it.
        rule: for one layer alone.
        isometric: whether a plain stack is made an isometry (orthogonal, mirrored where the
            functions are not odd), given its number of weights and the functions inside.
        residual: whether residual branches begin closed, or scaled by depth.
        by_data: whether each layer's output is scaled to unit size on the example afterwards.
        unit_size: whether those stacks work at a signal of size 1, however much their functions
            bend it: what is right for layers that will be residual branches.
    """

    name: str
    rule: Callable[[Layer], Rule]
    isometric: Callable[[int, list[Properties]], bool] = no_stack
    residual: bool = False
    by_data: bool = False
    unit_size: bool = False


AUTO = Scheme("auto", by_property, isometric=deep_stacks, residual=True)

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        AUTO,
        Scheme("he", he_rule),
        Scheme("glorot", glorot_rule),
        Scheme("lecun", lecun_rule),
        Scheme("orthogonal", orthogonal_rule),
        Scheme("mirrored", by_property, isometric=any_stack, residual=True),
        Scheme("lsuv", orthogonal_rule, by_data=True),
        Scheme("branches", by_property, isometric=deep_stacks, residual=True, unit_size=True),
        Scheme("fixup", by_property, residual=True),
    )
}


def scheme_named(scheme: str | Scheme) -> Scheme:
    """The scheme of a name; a scheme is itself.

    Raises:
        RecipeError: there is no scheme of that name.

    Example:
        >>> scheme_named("auto").residual
        True
    """
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(str(scheme), SCHEMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "auto suits any model."
        raise RecipeError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}; {hint}")
    return SCHEMES[scheme]


# ---- the functions of a model -----------------------------------------------------------------


class FunctionBook:
    """The properties of functions, found once for each different function.

    Every layer has a replayed function of its own, and most of them are the same: they are told
    apart by their values at fixed places.

    Example:
        >>> book = FunctionBook()
        >>> book.properties(torch.relu) is book.properties(torch.nn.functional.relu)
        True
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Scalar, Properties]] = {}
        self._places = torch.linspace(-7.3, 7.1, 97, dtype=torch.float64, device="cpu")

    def properties(self, function: Scalar) -> Properties:
        """The properties of a function.

        Raises:
            ModelError: it is not a deterministic elementwise function.
        """
        return self._entry(function)[1]

    def first(self, function: Scalar) -> Scalar:
        """The first function that was seen with the same values.

        Raises:
            ModelError: it is not a deterministic elementwise function.
        """
        return self._entry(function)[0]

    def _entry(self, function: Scalar) -> tuple[Scalar, Properties]:
        try:
            with torch.no_grad():
                key = function(self._places.clone()).numpy().tobytes()
        except Exception:  # whatever a replayed function raises; what follows says it in words
            return function, properties_of(function)
        if key not in self._known:
            self._known[key] = function, properties_of(function)
        return self._known[key]

    def layer(self, role: LayerRole, layout: Layout) -> Layer:
        """A layer with the properties of its consumer."""
        function = role.consumer.function
        if function is None:
            return Layer(role, None, layout)
        try:
            return Layer(role, self.properties(function), layout)
        except ModelError as error:
            return Layer(role, None, layout, f"{role.consumer.name} could not be replayed: {error}")
