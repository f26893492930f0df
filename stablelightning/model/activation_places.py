"""Where the activations of a model are, and which of them are hidden units', gates or outputs."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from stablelightning.errors import DataError
from stablelightning.model.activation_names import functional_name, is_activation, is_kind
from stablelightning.model.activation_seen import activations_seen
from stablelightning.model.inputs import arguments_of
from stablelightning.model.modules import modules_of
from stablelightning.model.structure import (
    graph_ends,
    watched_run,
    weight_layers,
)
from stablelightning.nn.activations import ScaledSigmoid

Role = Literal["hidden", "output", "gate", "recurrent", "unclear"]

#: Functions that weigh other values, from 0 to 1.
_GATES = (nn.Sigmoid, nn.Hardsigmoid)
#: Functions that a network ends in to bound its outputs or make them positive.
_OUTPUTS = (*_GATES, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.LogSigmoid, nn.Softsign, ScaledSigmoid)
#: What the inside of a recurrent cell is made of.
_OF_CELLS = (*_GATES, nn.Tanh, nn.Hardtanh)

_CELL = re.compile(r"lstm|gru|rnn|cell", re.IGNORECASE)
_GATE = re.compile(r"gate|squeeze|^se$|attention|^attn", re.IGNORECASE)
_NO_HIDDEN_UNIT = re.compile(r"out|final|last|head", re.IGNORECASE)

#: Nodes of autograd's graph that pass values on as they are.
_PASSING = re.compile(
    r"^(\w*View|Reshape|Unsqueeze|Squeeze|Expand|T|Transpose|Permute|Clone|ToCopy|Alias|Slice"
    r"|Select|Split|Repeat|AsStrided)"
)


@dataclass(frozen=True, eq=False)
class Place:
    """One place where a model holds an activation.

    Args:
        path: dotted path of the module or attribute.
        owner: the module that holds it.
        key: its name there.
        module: the activation; ``None`` where the attribute is a function such as ``F.relu``.
        function: that function, ``None`` for a module.
        role: what it does there.
    """

    path: str
    owner: nn.Module
    key: str
    module: nn.Module | None
    function: Any
    role: Role


def find_places(model: nn.Module, example: Any = None) -> list[Place]:
    """Find every activation that a model holds as a module or as a function in an attribute.

    Args:
        model: any module; it is left as it was.
        example: inputs of one batch. With it the flow of data decides what is an output (no layer
            with weights follows) and what is a gate (multiplied with other values), and classes of
            the user's own are found by what they do; without it, structure and names decide, and
            what they do not tell is ``"unclear"``.

    Returns:
        The places in the order of ``named_modules()``; a module that is held twice is there twice.

    Raises:
        DataError: the example does not fit the forward.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.Sigmoid())
        >>> [(place.path, place.role) for place in find_places(net)]
        [('1', 'hidden'), ('3', 'output')]
    """
    unnamed: set[nn.Module] = set()
    flow: dict[nn.Module, Role] = {}
    if example is not None:
        unnamed = activations_seen(model, example).modules
        flow = _roles_by_flow(model, example, unnamed)
    structure = _Structure(model)
    found = []
    for path, owner, key, module in _children(model):
        if is_activation(module) or module in unnamed:
            role = flow.get(module) or structure.role(owner, key, module)
            if _in_cell(owner, module):
                role = "recurrent"
            found.append(Place(path, owner, key, module, None, role))
    for name, owner in model.named_modules():
        for key, value in vars(owner).items():
            if not isinstance(value, nn.Module) and functional_name(value):
                path = f"{name}.{key}" if name else key
                found.append(Place(path, owner, key, None, value, _role_of_function(key, value)))
    return found


def leaves_of(model: nn.Module) -> list[nn.Module]:
    """The modules that do the work, in the order of ``modules()``: those that hold no others.

    Example:
        >>> [type(leaf).__name__ for leaf in leaves_of(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))]
        ['Linear', 'ReLU']
    """
    return [m for m in modules_of(model) if next(m.children(), None) is None]


def _children(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    for name, owner in model.named_modules():
        for key, child in owner._modules.items():
            if child is not None:
                yield (f"{name}.{key}" if name else key), owner, key, child


def _role_of_function(key: str, function: Any) -> Role:
    name = functional_name(function) or ""
    says_so = _NO_HIDDEN_UNIT.search(key) is not None or _GATE.search(key) is not None
    return "unclear" if says_so or name in ("sigmoid", "hardsigmoid", "softplus") else "hidden"


def _in_cell(owner: nn.Module, module: nn.Module) -> bool:
    """A cell written by hand; a classifier *around* an LSTM is called after it as well."""
    if not _CELL.search(type(owner).__name__) or not is_kind(module, *_OF_CELLS):
        return False
    return not any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in owner.modules())


# ---- by structure -------------------------------------------------------------------------------


class _Structure:
    """What the order of the modules and their names tell."""

    def __init__(self, model: nn.Module) -> None:
        self._leaves = leaves_of(model)
        weighted = set(weight_layers(model))
        positions = [i for i, leaf in enumerate(self._leaves) if leaf in weighted]
        self._last_weight = positions[-1] if positions else len(self._leaves)

    def role(self, owner: nn.Module, key: str, module: nn.Module) -> Role:
        position = next(i for i, leaf in enumerate(self._leaves) if leaf is module)
        if position > self._last_weight:
            # A ReLU that is defined last is mostly one that is used everywhere, unless it ends a
            # Sequential: then nothing comes after it.
            ends = isinstance(owner, nn.Sequential) and module is self._leaves[-1]
            if ends or is_kind(module, *_OUTPUTS):
                return "output"
        if is_kind(module, *_GATES):
            return self._gate_or_hidden(owner, key)
        return "hidden"

    def _gate_or_hidden(self, owner: nn.Module, key: str) -> Role:
        if _GATE.search(key) or _GATE.search(type(owner).__name__):
            return "gate"
        if not isinstance(owner, nn.Sequential):
            return "unclear"
        children = list(owner)
        # A gate is the last of its Sequential: what it makes is multiplied outside.
        hidden = [c for c in children[:-1] if is_kind(c, *_GATES)]
        return "hidden" if hidden else "unclear"


# ---- by flow ------------------------------------------------------------------------------------


def _roles_by_flow(
    model: nn.Module, example: Any, unnamed: set[nn.Module]
) -> dict[nn.Module, Role]:
    """Follow autograd's graph from every activation to what takes its values."""
    activations = [m for m in modules_of(model) if is_activation(m) or m in unnamed]
    layers = weight_layers(model)
    made: dict[nn.Module, list[Any]] = {}
    stops: set[Any] = set()
    weighted = set(layers)

    def remember(module: nn.Module, _args: Any, output: Any) -> None:
        ends = graph_ends(output)
        made.setdefault(module, []).extend(ends)
        if module in weighted:
            stops.update(ends)

    args, kwargs = arguments_of(example)
    try:
        output = watched_run(model, lambda: model(*args, **kwargs), activations + layers, remember)
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"the example must fit the forward of {type(model).__name__}, which raised "
            f"{type(error).__name__}: {reason}; pass the inputs alone, where the model is."
        ) from error
    consumers = _consumers(graph_ends(output))
    final = set(graph_ends(output))
    roles: dict[nn.Module, Role] = {}
    for module in activations:
        nodes = made.get(module)
        if nodes:
            roles[module] = _role_of(module, nodes, consumers, stops, final)
    return roles


def _role_of(
    module: nn.Module,
    nodes: list[Any],
    consumers: dict[Any, list[Any]],
    stops: set[Any],
    final: set[Any],
) -> Role:
    weighed, ends = _reached(nodes, consumers, stops, final)
    if ends and not weighed:
        return "output"
    if is_kind(module, *_OF_CELLS) and all(
        _is_multiplied(n, consumers, by_gate=not is_kind(module, *_GATES)) for n in nodes
    ):
        return "gate"
    return "hidden"


def _consumers(ends: list[Any]) -> dict[Any, list[Any]]:
    """Which nodes take the values of each node, in the graph behind an output."""
    found: dict[Any, list[Any]] = {}
    pending, seen = deque(ends), set(ends)
    while pending:
        node = pending.popleft()
        for source, _ in node.next_functions:
            if source is None:
                continue
            found.setdefault(source, []).append(node)
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return found


def _reached(
    starts: list[Any], consumers: dict[Any, list[Any]], stops: set[Any], final: set[Any]
) -> tuple[bool, bool]:
    """Whether a weight layer is downstream, and whether the output is before any."""
    weighed = ends = False
    pending, seen = deque(starts), set(starts)
    while pending:
        node = pending.popleft()
        ends |= node in final
        for following in consumers.get(node, ()):
            if following in stops:
                weighed = True
            elif following not in seen:
                seen.add(following)
                pending.append(following)
    return weighed, ends


def _is_multiplied(node: Any, consumers: dict[Any, list[Any]], *, by_gate: bool) -> bool:
    """Whether all that takes these values multiplies them with others (that are gates)."""
    takers = _takers(node, consumers)
    return bool(takers) and all(
        taker.name().startswith("Mul") and _partners_fit(taker, came_from, by_gate=by_gate)
        for taker, came_from in takers
    )


def _takers(node: Any, consumers: dict[Any, list[Any]]) -> list[tuple[Any, Any]]:
    """The first nodes after ``node`` that change values, and through which node each got them."""
    found = []
    pending = [node]
    while pending:
        current = pending.pop()
        for following in consumers.get(current, ()):
            if _PASSING.match(following.name()):
                pending.append(following)
            else:
                found.append((following, current))
    return found


def _partners_fit(product: Any, came_from: Any, *, by_gate: bool) -> bool:
    others = [n for n, _ in product.next_functions if n is not None and n is not came_from]
    computed = [n for n in others if not n.name().endswith("AccumulateGrad")]
    if not by_gate:
        return bool(computed)  # multiplied with a learned scale, it is no gate
    return any("igmoid" in _source(n).name() for n in computed)


def _source(node: Any) -> Any:
    """The node whose values these are, before views."""
    while _PASSING.match(node.name()) and node.next_functions and node.next_functions[0][0]:
        node = node.next_functions[0][0]
    return node
