"""A short training race: who gets how far in equal steps on equal batches, and at what cost."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.step import Loss, split_batch

#: The first steps pay for what is made once: buffers, kernels, caches.
_WARM_UP_STEPS = 3
#: Readings of the loss that count as the end.
_LAST_READINGS = 3


class Contestant(Protocol):
    """What races: something that learns from a batch, and tells its loss on another."""

    def learn(self, batch: Any, index: int) -> None:
        """Take one optimizer step on a batch, the ``index``-th."""

    def loss(self, batch: Any) -> float:
        """The loss on a batch that is not learned from."""


@dataclass
class Heat:
    """One contestant's run.

    Args:
        curve: pairs of steps taken and the mean held-out loss then; infinite where it is no number.
        milliseconds: median time of a step after the first few.
        failure: what it raised, in one line; empty if it came through.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    milliseconds: float = math.nan
    failure: str = ""

    @property
    def final(self) -> float:
        """The held-out loss towards the end: the mean of the last readings.

        One reading alone is noisy: a step may have just hurt. Infinite if it did not get there.
        """
        if self.failure or not self.curve:
            return math.inf
        last = [loss for _, loss in (self.curve[1:] or self.curve)[-_LAST_READINGS:]]
        return sum(last) / len(last)


def run_heat(
    contestant: Contestant,
    batches: Sequence[Any],
    held_out: Sequence[Any],
    *,
    steps: int,
    readings: int = 10,
) -> Heat:
    """Let one contestant train, and read its held-out loss on the way.

    Args:
        contestant: who races.
        batches: learned from, in this order, over and over; at least one.
        held_out: the loss is the mean over these; at least one.
        steps: optimizer steps, >= 1.
        readings: times the loss is read after the start, >= 1.

    Returns:
        A :class:`Heat`. An exception of the contestant's ends its run and is told there.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> racer = PlainContestant(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
        >>> batch = (torch.ones(8, 2), torch.ones(8, 1))
        >>> heat = run_heat(racer, [batch], [batch], steps=20)
        >>> heat.curve[-1][0], heat.curve[-1][1] < heat.curve[0][1]
        (20, True)
    """
    heat = Heat()
    times: list[float] = []
    marks = {round(steps * (i + 1) / readings) for i in range(readings)} | {steps}
    try:
        heat.curve.append((0, _mean_loss(contestant, held_out)))
        for step in range(steps):
            began = time.perf_counter()
            contestant.learn(batches[step % len(batches)], step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
            if step + 1 in marks:
                heat.curve.append((step + 1, _mean_loss(contestant, held_out)))
    except Exception as error:  # whatever a user's step raises with another activation
        lines = str(error).strip().splitlines()
        heat.failure = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if times:
        heat.milliseconds = median(times[_WARM_UP_STEPS:] or times)
    return heat


def _mean_loss(contestant: Contestant, batches: Sequence[Any]) -> float:
    # Reading the loss moves no generator, so that equal seeds stay equal however often it is read.
    with undisturbed_generators():
        losses = [contestant.loss(batch) for batch in batches]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf


class PlainContestant:
    """A module, a loss and an optimizer, without a trainer.

    Args:
        module: trained in place.
        criterion: ``criterion(output, target)``, a scalar.
        optimizer: over the module's parameters.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> PlainContestant(net, nn.MSELoss(), sgd).loss((torch.zeros(4, 2), torch.zeros(4, 1))) < 1
        True
    """

    def __init__(
        self, module: nn.Module, criterion: Loss, optimizer: torch.optim.Optimizer
    ) -> None:
        self.module = module
        self._criterion = criterion
        self._optimizer = optimizer

    def prepared(self, batch: Any) -> Any:
        """The batch as it is."""
        return batch

    def learn(self, batch: Any, index: int) -> None:
        """Take one step on ``(inputs, target)``."""
        self.module.train()

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            loss = self._of(batch)
            loss.backward()
            return loss

        step: Callable[..., Any] = self._optimizer.step
        step(closure)

    def loss(self, batch: Any) -> float:
        """The loss on ``(inputs, target)`` in eval."""
        self.module.eval()
        with torch.no_grad():
            return float(self._of(batch))

    def _of(self, batch: Any) -> Tensor:
        inputs, target = split_batch(self.module, batch)
        output = self.module(*inputs) if isinstance(inputs, tuple) else self.module(inputs)
        return self._criterion(output, target)
