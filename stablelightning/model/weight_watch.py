"""Gradient norms, updates and distances from the start, of every layer, without a copy of it."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.functional.monitor import (
    piece_norms,
    sampled_entries,
    sampled_sizes,
    tensor_norms,
)

#: What a parametrization puts between the name of a module and those of its parameters.
_PARAMETRIZED = ".parametrizations."
_RARELY_USED = (nn.Embedding, nn.EmbeddingBag)

Signals = dict[str, dict[str, float]]  # by layer, by quantity


@dataclass
class Layout:
    """Which parameters and weights the numbers of a measurement belong to, by their places.

    Args:
        gradients: parameters whose gradients were measured.
        scaled: whether a loss scaler is at work, for which a gradient that overflows is no fault.
        updates: weights whose change was measured.
        trained: weights that require a gradient.
    """

    gradients: list[int] = field(default_factory=list)
    scaled: bool = False
    updates: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Before:
    """One optimizer before its step: gradient norms of parameters, sampled entries of weights."""

    ready: list[int]
    norms: Tensor | None
    scaled: bool
    places: list[int]
    entries: Tensor | None


class WeightWatch:
    """Measures what a step does to the weights of a model.

    A layer is a module that owns a parameter of two or more dimensions (or such a parameter of the
    model itself). Its gradient is that of all its own parameters; what counts as its weights are
    those of two or more dimensions. How they change is measured on
    :data:`~stablelightning.functional.monitor.SAMPLED_ENTRIES` entries of each: copies would double
    the memory of the weights, and the start would double every checkpoint.

    Args:
        model: with all its parameters in place, before the first step.

    Attributes:
        start: the sampled entries of all weights when training started.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        >>> WeightWatch(net).layers
        ['0', '2']
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(n, p) for n, p in model.named_parameters() if not is_lazy(p)]
        self.names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._places = {id(parameter): n for n, parameter in enumerate(self._parameters)}
        owners = [_owner(name) for name in self.names]
        self._of_weights = [n for n, p in enumerate(self._parameters) if p.ndim >= 2]
        self._weights = [self._parameters[n] for n in self._of_weights]
        self._layer_of_weight = [owners[n] for n in self._of_weights]
        self.layers = list(dict.fromkeys(self._layer_of_weight))
        self._layer = [owner if owner in set(self.layers) else "" for owner in owners]
        self.sizes = sampled_sizes(self._weights)
        self._scale = [
            w.numel() / max(s, 1) for w, s in zip(self._weights, self.sizes, strict=True)
        ]
        modules = dict(model.named_modules())
        self.rarely_used = [n for n in self.layers if isinstance(modules.get(n), _RARELY_USED)]
        self.start = sampled_entries(self._weights) if self._weights else torch.zeros(0)
        self._start_norms = self._norms(self.start)
        self._layout = Layout()
        self._gradients: list[Tensor] = []
        self._updates: list[Tensor] = []

    def start_from(self, entries: Tensor) -> None:
        """Take up the start of the run that is resumed."""
        self.start = entries.to(self.start)
        self._start_norms = self._norms(self.start)

    @property
    def device(self) -> torch.device:
        """Where the numbers are gathered: the device of the first parameter."""
        return self._parameters[0].device if self._parameters else torch.device("cpu")

    def before_step(
        self, parameters: Iterable[Tensor], *, scale: Tensor | None = None, scaled: bool = False
    ) -> Before:
        """Measure the gradients of one optimizer, and remember its weights.

        Nothing of it counts until :meth:`after_step`: a loss scaler may skip the step.

        Args:
            parameters: those of the optimizer, their gradients as the step will see them.
            scale: what the gradients are still multiplied by, a scalar.
            scaled: whether a loss scaler is at work: it tries scales until gradients overflow.
        """
        own = {self._places[id(p)] for p in parameters if id(p) in self._places}
        ready = [n for n in sorted(own) if self._parameters[n].grad is not None]
        gradients = [g for n in ready if (g := self._parameters[n].grad) is not None]
        norms = tensor_norms(gradients) if gradients else None
        if norms is not None and scale is not None:
            norms = norms / scale.to(norms)
        stepping = set(ready)
        places = [place for place, n in enumerate(self._of_weights) if n in stepping]
        entries = sampled_entries([self._weights[p] for p in places]) if places else None
        return Before(ready, norms, scaled, places, entries)

    def after_step(self, before: Before) -> None:
        """Keep what was measured before the step, and measure how the weights changed."""
        if before.norms is not None:
            self._layout.gradients += before.ready
            self._layout.scaled |= before.scaled
            self._gradients.append(before.norms)
        if before.entries is not None:
            now = sampled_entries([self._weights[p] for p in before.places])
            sizes = [self.sizes[p] for p in before.places]
            self._layout.updates += before.places
            changed = piece_norms(now - before.entries, sizes)
            weighed = piece_norms(before.entries, sizes)
            self._updates.append(torch.stack([changed, weighed], 1).ravel())

    @property
    def has_stepped(self) -> bool:
        """Whether there is anything to take: some optimizer stepped while it was watched."""
        return bool(self._gradients or self._updates)

    def take(self) -> tuple[Layout, Tensor]:
        """What was measured since the last time, and how far the weights are now from the start.

        Returns:
            What the numbers belong to, and the numbers in one row, on the model's device.
        """
        layout, self._layout = self._layout, Layout()
        layout.trained = [p for p, w in enumerate(self._weights) if w.requires_grad]
        parts = [*self._gradients, *self._updates]
        self._gradients, self._updates = [], []
        if self._weights:
            now = sampled_entries(self._weights)
            parts += [self._norms(now - self.start), self._start_norms, self._norms(now)]
        device = self.device
        return layout, torch.cat([torch.zeros(0, device=device), *(p.to(device) for p in parts)])

    def read(self, layout: Layout, row: Tensor) -> tuple[Signals, float | None]:
        """Combine the numbers of a measurement by layer.

        Args:
            layout: as :meth:`take` gave it.
            row: as :meth:`take` gave it, on the CPU.

        Returns:
            ``grad_norm``, ``update_ratio`` and ``distance`` of each layer, as far as they were
            measured; and the joint norm of all gradients.
        """
        counts = self._counts(layout)
        gradients, updates, distances = (part.tolist() for part in row.split(counts))
        signals: Signals = defaultdict(dict)
        squares: dict[str, float] = defaultdict(float)
        overflow = layout.scaled and not all(map(math.isfinite, gradients))
        for place, norm in zip(layout.gradients, gradients, strict=True):
            if overflow:
                break  # the scaler's affair: it skips the step and lowers its scale
            squares[self._layer[place]] += norm**2
        for layer in self.layers:
            if layer in squares:
                signals[layer]["grad_norm"] = math.sqrt(squares[layer])
        total = math.sqrt(sum(squares.values())) if squares else None
        changes = zip(layout.updates, updates[::2], updates[1::2], strict=True)
        for layer, (changed, weighed) in self._by_layer(changes).items():
            signals[layer]["update_ratio"] = _ratio(changed, weighed)
        count = len(self._weights)
        moved, begun, now = (distances[n * count : (n + 1) * count] for n in range(3))
        paths = ((p, moved[p], begun[p], now[p]) for p in layout.trained)
        for layer, (away, first, last) in self._by_layer(paths).items():
            # A layer that starts at zero is told by what it is now: it has moved all of that.
            signals[layer]["distance"] = _ratio(away, first or last)
        return dict(signals), total

    def width(self, layout: Layout) -> int:
        """How many numbers :meth:`take` made for a layout."""
        return sum(self._counts(layout))

    def _counts(self, layout: Layout) -> list[int]:
        return [len(layout.gradients), 2 * len(layout.updates), 3 * len(self._weights)]

    def _by_layer(self, numbers: Iterable[tuple[float, ...]]) -> dict[str, list[float]]:
        """Joint norms of the weights of each layer; the first number is the weight's place."""
        squares: dict[str, list[float]] = {}
        for place, *norms in numbers:
            scale = self._scale[int(place)]
            mine = [scale * norm**2 for norm in norms]
            layer = self._layer_of_weight[int(place)]
            before = squares.get(layer, [0.0] * len(norms))
            squares[layer] = [a + b for a, b in zip(before, mine, strict=True)]
        return {layer: [math.sqrt(s) for s in sums] for layer, sums in squares.items()}

    def _norms(self, entries: Tensor) -> Tensor:
        return piece_norms(entries, self.sizes)


def _owner(name: str) -> str:
    """The module whose parameter it is; of the model's own parameters, their name."""
    module, _, parameter = name.partition(_PARAMETRIZED)[0].rpartition(".")
    if _PARAMETRIZED in name:
        return name.partition(_PARAMETRIZED)[0]
    return module or parameter


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
