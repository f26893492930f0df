"""The loss and the gradient norm of one step, read in one transfer, the same on every process."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stablelightning.functional.spikes import SpikeDetector

#: Factors above the usual that only errors have. A regression that meets an outlier may have a loss
#: of a thousand times the usual one; its gradient is at most the root of that.
_LOSS_ERROR, _GRADIENT_ERROR = 2000.0, 500.0


@dataclass(frozen=True)
class Reading:
    """What one step looked like.

    Args:
        loss: the largest of all processes, without the loss scale; NaN where it is not finite on
            any of them, ``None`` where nothing ran backward through Lightning.
        norm: L2 norm of the gradients, likewise; ``None`` where it was not asked for.
        own: the two as this process had them.
        size: largest absolute value of the inputs, likewise; ``None`` where it was not asked for.
        own_size: the same, as this process had it.
    """

    loss: float | None
    norm: float | None
    own: tuple[float | None, float | None]
    size: float | None = None
    own_size: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether loss and norm are, on every process; inputs may hold NaN on purpose."""
        return all(math.isfinite(value) for value in (self.loss, self.norm) if value is not None)


def read(
    trainer: L.Trainer, losses: Sequence[Tensor], norm: Tensor | None, size: Tensor | None = None
) -> Reading:
    """Bring loss, norm and size of the inputs to the host; every process must ask.

    All get the same reading.

    Args:
        trainer: of the run.
        losses: what ran backward since the last reading, as ``on_before_backward`` gives it, that
            is with the loss scale, and divided by the number of accumulated batches.
        norm: of the gradients, if it is wanted.
        size: of the inputs, if it is wanted; left out where there is neither of the others.

    Returns:
        The reading. Waits for the device once.
    """
    total = _total(trainer, losses)
    if total is None and norm is None:
        return Reading(None, None, (None, None))
    if size is None and trainer.world_size > 1:  # it may not be so for the others
        size = torch.zeros_like(norm if total is None else total)  # type: ignore[arg-type]
    wanted = (total, norm, size)
    values = [value for value in wanted if value is not None]
    on_host = _on_host(values)
    own = _places(wanted, on_host)
    agreed = _places(wanted, _agreed(values)) if trainer.world_size > 1 else own
    return Reading(agreed[0], agreed[1], (own[0], own[1]), agreed[2] or None, own[2])


def size_of(batch: Any) -> Tensor | None:
    """The largest absolute value of a batch's floating tensors; ``None`` where there is none.

    Example:
        >>> size_of((torch.tensor([[1.0], [-3.0]]), torch.tensor([0, 7])))
        tensor(3.)
    """
    found = [
        torch.linalg.vector_norm(leaf, torch.inf)
        for leaf in _leaves(batch)
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.numel()
        and leaf.layout is torch.strided
    ]
    if len(found) < 2:
        return found[0].detach() if found else None
    return torch.stack([size.detach().to(found[0]) for size in found]).max()


def _leaves(batch: Any) -> Sequence[Any]:
    """What a batch holds; a flat pair, as most are, is not worth a walk through trees."""
    flat = type(batch) in (list, tuple) and all(isinstance(leaf, Tensor) for leaf in batch)
    return batch if flat else tree_leaves(batch)


def _total(trainer: L.Trainer, losses: Sequence[Tensor]) -> Tensor | None:
    if not losses:
        return None
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    if total.ndim:  # manual_backward(loss, gradient=...)
        total = total.mean()
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        total = total / scaler._get_scale_async()
    if trainer.lightning_module.automatic_optimization and trainer.accumulate_grad_batches > 1:
        total = total * trainer.accumulate_grad_batches
    return total


def _on_host(values: list[Tensor]) -> list[float]:
    if all(value.device.type == "cpu" for value in values):
        return [value.item() for value in values]
    first = values[0].device
    stacked = torch.stack([value.to(first, torch.float32) for value in values])
    return [float(value) for value in stacked.tolist()]


def _agreed(values: list[Tensor]) -> list[float]:
    """The largest of all processes: in a mean, many good batches would hide a bad one."""
    device = values[0].device
    stacked = torch.stack([value.to(device, torch.float32) for value in values])
    finite = stacked.isfinite()
    lowest = torch.full_like(stacked, -torch.inf)
    both = torch.cat([stacked.where(finite, lowest), (~finite).float()])
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    numbers = both.tolist()
    largest, bad = numbers[: len(values)], numbers[len(values) :]
    return [math.nan if b else value for value, b in zip(largest, bad, strict=True)]


def _places(wanted: Sequence[Tensor | None], values: Sequence[float]) -> list[float | None]:
    given = iter(values)
    return [None if value is None else next(given) for value in wanted]


@dataclass
class Judge:
    """Says what is wrong with a reading, by what was usual before.

    Args:
        threshold: robust standard deviations above which a finite value is a spike.
    """

    threshold: float
    _detectors: dict[str, SpikeDetector] = field(default_factory=dict)
    _trained: dict[int, int] = field(default_factory=dict)  # most parameters, by optimizer

    def expect(self, optimizer: int, parameters: int) -> None:
        """Learn anew which gradients are usual where more parameters are trained than ever before.

        Layers that are unfrozen bring gradients of their own, which are no spike.

        Args:
            optimizer: its number in the Trainer.
            parameters: how many of its parameters require a gradient; the same on every process.
        """
        before = self._trained.setdefault(optimizer, parameters)
        if parameters > before:
            self._trained[optimizer] = parameters
            self._detectors.pop(f"gradient/{optimizer}", None)

    def verdict(self, reading: Reading, optimizer: int) -> str | None:
        """What is wrong, ``None`` if nothing is; finite values are remembered as seen.

        Args:
            reading: of one step of one optimizer, or of one accumulated batch.
            optimizer: its number in the Trainer; each has losses and norms of its own.
        """
        if reading.loss is not None and not math.isfinite(reading.loss):
            return "non-finite-loss"
        if reading.norm is not None and not math.isfinite(reading.norm):
            return "non-finite-gradient"
        named = {"loss": reading.loss, "gradient": reading.norm}
        spikes = [
            f"{name}-spike"
            for name, value in named.items()
            if value is not None and self._is_spike(f"{name}/{optimizer}", value)
        ]
        if reading.size is not None and self._is_spike("input", reading.size):
            spikes.append("input-spike")
        return spikes[0] if spikes else None

    def _is_spike(self, name: str, value: float) -> bool:
        detector = self._detectors.get(name)
        if detector is None:
            detector = self._detectors[name] = self._new_detector(name)
        spike = detector.is_spike(value)
        detector.add(value)
        return spike

    def _new_detector(self, name: str) -> SpikeDetector:
        error = _GRADIENT_ERROR if name.startswith("gradient") else _LOSS_ERROR
        return SpikeDetector(threshold=self.threshold, error=error)

    def state_dict(self) -> dict[str, Any]:
        """What was usual, as plain types."""
        usual = {name: detector.state_dict() for name, detector in self._detectors.items()}
        return {"usual": usual, "trained": dict(self._trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._detectors, self._trained = {}, dict(state["trained"])
        for name, kept in state["usual"].items():
            self._detectors[name] = self._new_detector(name)
            self._detectors[name].load_state_dict(kept)
