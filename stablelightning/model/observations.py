"""Statistics that can wait: of equal small tensors many are computed at the cost of one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from stablelightning.model.observe import (
    ActivationSignal,
    FunctionShape,
    Given,
    TensorSignal,
    given_to,
    observe_activations,
    observe_together,
    sample,
)

#: Tensors of more values are looked at when they come: calling torch costs less than a copy there.
_SMALL = 2**15
#: So many values wait at most, of one kind: what is made of them fits into the processor's cache.
_WAITING = 2**17


@dataclass
class Observations:
    """Collects tensors of a running model, and hands out what was seen of them, later.

    Small ones are copied, since the model may write into them, and wait for others like them.

    Args:
        examples: size of the batch.
    """

    examples: int
    _waiting: dict[Any, list[tuple[Given, Callable[[Any], None]]]] = field(default_factory=dict)
    _seers: dict[Any, Callable[[list[Given]], list[Any]]] = field(default_factory=dict)

    def of_tensor(
        self, values: Tensor, *, dimension: int, then: Callable[[TensorSignal], None]
    ) -> int:
        """Call ``then`` with the signal of an activation, now or at :meth:`finish`.

        Returns:
            The number of its units.
        """
        given = given_to(values, dimension=dimension, examples=self.examples)
        self._add(given, ("tensor",), observe_together, then)
        return given.units

    def of_activation(
        self,
        function: Callable[[Tensor], Tensor],
        values: Tensor,
        *,
        named: str,
        dimension: int,
        shape: FunctionShape,
        then: Callable[[ActivationSignal], None],
    ) -> None:
        """Call ``then`` with what a function does with its input, now or at :meth:`finish`."""

        def see(given: list[Given]) -> list[ActivationSignal]:
            return observe_activations(named, function, given, shape=shape)

        given = Given(sample(values, dimension), dimension, 1, False)
        self._add(given, (named, function, shape), see, then)

    def finish(self) -> None:
        """Look at everything that waits."""
        for key in list(self._waiting):
            self._see(key)

    def _add(
        self,
        given: Given,
        kind: tuple[Any, ...],
        see: Callable[[list[Given]], list[Any]],
        then: Callable[[Any], None],
    ) -> None:
        part = given.part
        if part.numel() > _SMALL or not _is_plain(part):
            then(see([given])[0])
            return
        key = (*kind, *given.key)
        group = self._waiting.setdefault(key, [])
        self._seers.setdefault(key, see)
        group.append((replace(given, part=part.clone()), then))
        if len(group) * part.numel() >= _WAITING:
            self._see(key)

    def _see(self, key: Any) -> None:
        group = self._waiting.pop(key)
        see = self._seers.pop(key)
        with torch._C.DisableTorchFunction():
            seen = see([given for given, _ in group])
        for (_, then), signal in zip(group, seen, strict=True):
            then(signal)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own that can be copied and kept."""
    usual = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return usual and not tensor.is_meta and not is_functorch_wrapped_tensor(tensor)
