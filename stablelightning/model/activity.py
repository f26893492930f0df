"""What the units of every layer do in training: hooks that are there only while they measure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from stablelightning.functional.monitor import (
    FlatEnds,
    UnitStatistics,
    flat_ends,
    unit_statistics,
)
from stablelightning.model.attribution import LayerRole, attribute
from stablelightning.model.generators import preserved_generators
from stablelightning.model.structure import is_weight_layer
from stablelightning.model.unit_record import pack

_NO_FLAT_ENDS = FlatEnds()
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NOT_OF_ONE_NUMBER = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
#: What lies between a layer and its function and leaves to each unit the values that it had, at
#: most fewer of them: the layer's own output then tells what the function is given.
_SAME_UNITS = {"view", "slice", "cat", "pool", "dropout", "norm"}


@dataclass
class _Watched:
    """One layer, and where its units are to be seen."""

    name: str
    module: nn.Module
    units: int
    dimension: int  # of the units in its output
    function: Callable[[Tensor], Tensor] | None = None
    ends: FlatEnds = _NO_FLAT_ENDS
    activation: nn.Module | None = None  # runs the function; None: no module does
    behind_norm: bool = False
    found: bool = False  # whether its function was told, and need not be guessed
    is_output: bool = False


class ActivityWatch:
    """Collects statistics of units from the forward passes between ``attach`` and ``detach``.

    A layer's activation is what its consumer makes of it: the output of the activation module
    behind it, or the function that a watched forward found, applied to the layer's output (to that
    of the norm behind it). Where neither is known, an activation module is taken to belong to the
    layers that ran since the one before it. A layer without a function is looked at as it is.

    Not seen: modules that ``torch.compile`` compiled (hooks that come later never fire).

    Args:
        model: any eager module; it is not changed while nothing is attached.
        roles: ``attribute(...).layers`` of a watched forward, if there was one.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> watch = ActivityWatch(net)
        >>> with watch:
        ...     _ = net(torch.ones(4, 2))
        >>> watch.layers, watch.units
        (['0', '2'], [3, 1])
        >>> watch.take(torch.zeros(1))[:2]  # examples that each layer has seen
        tensor([4., 4.])
    """

    def __init__(self, model: nn.Module, roles: Sequence[LayerRole] = ()) -> None:
        self._watched = list(_watched_layers(model))
        modules = dict(model.named_modules())
        with preserved_generators():
            for role in roles:
                for watched in self._watched:
                    if watched.name == role.name and not watched.found:
                        _assign(watched, role, modules)
            guesses = {} if roles else _activation_modules(modules.values())
        self._guesses: dict[nn.Module, FlatEnds] = guesses
        self._norms = [m for m in modules.values() if isinstance(m, _NORMS)]
        self._handles: list[RemovableHandle] = []
        self._looked = False
        self._seen: dict[int, UnitStatistics] = {}
        self._seen_before: dict[int, UnitStatistics] = {}  # when it was last attached
        self._waiting: list[int] = []
        self._before_norm: dict[int, tuple[int, Tensor]] = {}
        self._given: dict[nn.Module, Tensor] = {}

    @property
    def layers(self) -> list[str]:
        """Dotted names of the layers."""
        return [watched.name for watched in self._watched]

    @property
    def units(self) -> list[int]:
        """Number of units of each layer."""
        return [watched.units for watched in self._watched]

    @property
    def ends(self) -> list[FlatEnds]:
        """Where the function of each layer is flat, as far as it is known now."""
        return [watched.ends for watched in self._watched]

    @property
    def outputs(self) -> list[str]:
        """Names of the layers that make the model's output: they may saturate."""
        return [watched.name for watched in self._watched if watched.is_output]

    @property
    def has_looked(self) -> bool:
        """Whether it was attached since the last :meth:`take`: every process knows the same."""
        return self._looked

    # ---- hooks ----------------------------------------------------------------------------------

    def __enter__(self) -> "ActivityWatch":
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> None:
        """Begin to collect; once more changes nothing."""
        if self._handles:
            return
        self._looked = True
        self._seen_before = dict(self._seen)
        for number, watched in enumerate(self._watched):
            self._handles.append(watched.module.register_forward_hook(self._after_layer(number)))
        activations = {w.activation for w in self._watched if w.activation} | self._guesses.keys()
        for module in activations:
            self._handles.append(module.register_forward_pre_hook(self._before_activation))
            self._handles.append(module.register_forward_hook(self._after_activation))
        if any(watched.behind_norm for watched in self._watched):
            for module in self._norms:
                self._handles.append(module.register_forward_hook(self._after_norm))

    def detach(self) -> None:
        """Leave no hook and no tensor of the forward behind; what was collected stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._waiting = []
        self._before_norm = {}
        self._given = {}

    def forget(self) -> None:
        """Drop what was collected since it was last attached."""
        self._seen = dict(self._seen_before)

    def _after_layer(self, number: int) -> Callable[..., None]:
        watched = self._watched[number]

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(tensor, Tensor) or _recomputing():
                return
            if self._guesses and self._waiting and number <= self._waiting[-1]:
                self._waiting = []  # another pass has begun, and those belong to the one before
            self._waiting.append(number)
            if watched.behind_norm:
                self._before_norm[id(tensor)] = number, tensor
            elif watched.activation is None:
                self._look(number, tensor)

        return hook

    def _after_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        given = args[0] if args else None
        number, tensor = self._before_norm.pop(id(given), (-1, None))
        if tensor is given and isinstance(output, Tensor) and not _recomputing():
            self._look(number, output)

    def _before_activation(self, module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and not _recomputing():
            given = args[0].detach()
            self._given[module] = given.clone() if getattr(module, "inplace", False) else given

    def _after_activation(self, module: nn.Module, args: Any, output: Any) -> None:
        given = self._given.pop(module, None)
        if given is None or not isinstance(output, Tensor):
            return
        rest = []
        for number in self._waiting:
            watched = self._watched[number]
            if watched.activation is module:
                if not self._look(number, output, given):
                    watched.activation = None  # its units are elsewhere by now: look at it itself
            elif module in self._guesses and _fits(watched, output):
                # A layer that ran before an activation, and nothing between them.
                watched.activation, watched.ends = module, self._guesses[module]
                self._seen.pop(number, None)
                self._look(number, output, given)
            elif module not in self._guesses:
                rest.append(number)
        self._waiting = rest

    def _look(self, number: int, output: Tensor, given: Tensor | None = None) -> bool:
        watched = self._watched[number]
        if not _fits(watched, output):
            return False
        with torch.no_grad():
            output = output.detach()
            if given is None and watched.function is not None:
                given, output = output, watched.function(output.clone())
            if watched.dimension == 1 and output.ndim == _dimensions(watched) - 1:
                output = output[None]
                given = None if given is None else given[None]
            seen = unit_statistics(
                output, unit_dimension=watched.dimension, inputs=given, ends=watched.ends
            )
        before = self._seen.get(number)
        self._seen[number] = seen if before is None else before.merged(seen)
        return True

    # ---- numbers --------------------------------------------------------------------------------

    def take(self, like: Tensor) -> Tensor:
        """Everything collected since the last time, in one row.

        Args:
            like: a tensor on the device where the row shall be.

        Returns:
            ``(n,)`` float32; the same layout every time and on every process, however its forward
            went. :meth:`~stablelightning.model.unit_record.UnitRecord.look` reads it.
        """
        seen = [self._seen.get(number) for number in range(len(self._watched))]
        self._seen, self._seen_before, self._looked = {}, {}, False
        return pack(seen, self.units, like)


def followed_layers(model: nn.Module, inputs: Any) -> list[LayerRole]:
    """Watch a forward for the roles of layers, and keep none of the tensors that passed.

    Args:
        model: any eager module; left as it was.
        inputs: a tensor, a tuple or list to spread, or a dict of keywords.

    Raises:
        DataError: the inputs do not fit the forward.
        ModelError: the model is scripted.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> [role.consumer.name for role in followed_layers(net, torch.ones(4, 2))]
        ['relu', 'linear']
    """
    attribution = attribute(model, inputs)
    # A function is replayed from the trace, which would keep the whole first pass in memory.
    for operation in attribution.trace.operations:
        for value in operation.outputs:
            if value.moving:
                tensor = value.tensor
                value.tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return attribution.layers


# ---- which layers, and what follows them --------------------------------------------------------


def _watched_layers(model: nn.Module) -> Iterator[_Watched]:
    """Layers whose number of units is known before they run: every process has the same."""
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or not is_weight_layer(module):
            continue
        if isinstance(module, _ConvNd):
            layers.append(_Watched(name, module, module.out_channels, 1))
        elif isinstance(module, nn.RNNBase):
            units = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
            layers.append(_Watched(name, module, units, -1))
        elif isinstance(module, nn.Linear | nn.Bilinear):
            layers.append(_Watched(name, module, module.out_features, -1))
    if layers:
        layers[-1].is_output = True
    yield from layers


def _assign(watched: _Watched, role: LayerRole, modules: dict[str, nn.Module]) -> None:
    """Note what a watched forward found of a layer."""
    watched.found = True
    watched.is_output = role.is_output
    function = role.consumer.function
    if function is None:
        return
    owner = modules.get(role.consumer.module)
    route = set(role.consumer.route)
    # Of a layer that is used several times only its own output tells one use from another.
    if owner is not None and role.uses == 1 and _is_activation(owner):
        watched.activation = owner
    elif route <= _SAME_UNITS:
        watched.function = function
        watched.behind_norm = "norm" in route
    else:  # what is added to it on the way cannot be seen from here
        return
    watched.ends = _ends_of(function)


def _is_activation(module: nn.Module) -> bool:
    inside = any(True for _ in module.children())
    return not inside and not is_weight_layer(module) and not isinstance(module, _NORMS)


def _activation_modules(modules: Iterable[nn.Module]) -> dict[nn.Module, FlatEnds]:
    known = tuple(getattr(torch_activations, name) for name in torch_activations.__all__)
    return {
        module: _ends_of(module.forward)
        for module in modules
        if isinstance(module, known) and not isinstance(module, _NOT_OF_ONE_NUMBER)
    }


def _ends_of(function: Callable[..., Any]) -> FlatEnds:
    try:
        return flat_ends(function)
    except Exception:  # whatever a function of the user's raises that is not of one number
        return _NO_FLAT_ENDS


def _fits(watched: _Watched, output: Tensor) -> bool:
    if not output.is_floating_point() or not output.numel():
        return False
    if watched.dimension == 1:
        place = output.ndim - (_dimensions(watched) - 1)
        return 0 <= place <= 1 and output.shape[place] == watched.units
    return output.ndim >= 1 and output.shape[-1] == watched.units


def _dimensions(watched: _Watched) -> int:
    """Of a batch of the outputs of a convolution."""
    assert isinstance(watched.module, _ConvNd)
    return len(watched.module.kernel_size) + 2


def _recomputing() -> bool:
    """Whether this forward is activation checkpointing's second one, during backward."""
    return torch._C._current_graph_task_id() != -1
