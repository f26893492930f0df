"""One batch under guard: its losses and gradients are read, and it is undone if they are bad."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer

from stablelightning.callbacks.gradients import count_trained, gradients_of, require_graph
from stablelightning.callbacks.guard_gradients import (
    KeptGradients,
    drop_gradients,
    parameters_of_all,
)
from stablelightning.callbacks.guard_readings import Judge, Reading, read, size_of
from stablelightning.callbacks.guard_undo import (
    BatchUndo,
    StepUndo,
    evaluates_repeatedly,
    loss_scaler,
)

#: So many bad batches in a row are each given the same random numbers, as if the others had not
#: been. Where the draws themselves are at fault (the logarithm of a zero that was drawn), every
#: batch after that would be bad; so draws go on from there.
_SAME_DRAWS = 3

#: A loss scale that makes an ordinary loss overflow. It gets there where all gradients vanish, as
#: the scaler doubles it as long as it can.
_SCALE_OF_OVERFLOW = 2.0**64


@dataclass(frozen=True)
class Trip:
    """Why a batch was undone.

    Args:
        verdict: ``non-finite-loss``, ``non-finite-gradient``, ``loss-spike``, ``gradient-spike``
            or ``input-spike``.
        reading: what was read.
        whole_step: whether the optimizer's step was skipped, and not one accumulated batch dropped.
    """

    verdict: str
    reading: Reading
    whole_step: bool

    @property
    def is_spike(self) -> bool:
        """Whether all values were finite."""
        return self.verdict.endswith("spike")

    @property
    def is_of_the_data(self) -> bool:
        """Whether the inputs themselves were bad, on any process."""
        size = self.reading.size
        return self.quantity == "input" or (size is not None and not math.isfinite(size))

    @property
    def fault(self) -> float:
        """How bad this process's own values were; gradients are those of all by then."""
        own = self.reading.own_size if self.quantity == "input" else self.reading.own[0]
        return math.inf if own is not None and not math.isfinite(own) else own or 0.0

    @property
    def quantity(self) -> str:
        """``"loss"``, ``"gradient"`` or ``"input"``."""
        return next(name for name in ("loss", "gradient", "input") if name in self.verdict)

    @property
    def value(self) -> float | None:
        """Of that quantity, on this process."""
        loss, norm = self.reading.own
        return {"loss": loss, "gradient": norm, "input": self.reading.own_size}[self.quantity]


class BatchGuard:
    """Follows one batch after the other from hook to hook.

    Args:
        trainer: of the run.
        pl_module: its module.
        judge: says what is bad.

    Attributes:
        trip: why the present batch was undone, ``None`` if it was not.
        stepped: whether an optimizer stepped in it.
        has_skipped: whether a step of it has passed without effect.
        loss: the last loss that was read and was good.
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule, judge: Judge) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._judge = judge
        self._automatic = pl_module.automatic_optimization
        self._window = BatchUndo(trainer, pl_module)  # since the last step
        self._batch = self._window  # since the last batch; another one while batches accumulate
        self._step = StepUndo(trainer)
        self._gradients = KeptGradients()
        self._losses: list[Tensor] = []
        self._size: Tensor | None = None  # of the inputs, until it was read
        self._accumulates = False
        self._evaluated: set[int] = set()
        self._dropped = 0  # batches of the present window
        self._in_a_row = 0
        self._has_window = False
        self.trip: Trip | None = None
        self.stepped = False
        self.has_skipped = False
        self.loss: float | None = None

    @property
    def is_skipping(self) -> bool:
        """Whether the steps of this batch are to have no effect."""
        return self._step.is_skipping

    def relist(self) -> None:
        """Look for modules that were added or taken away."""
        self._window.relist()
        self._batch.relist()

    def start(self, batch: Any, batch_idx: int) -> None:
        """A batch begins: remember what it may change."""
        number = self._trainer.accumulate_grad_batches if self._automatic else 1
        self._accumulates = number > 1
        self._losses.clear()
        self._size = size_of(batch)
        self._evaluated.clear()
        self._step.begin()
        self.trip, self.stepped, self.has_skipped = None, False, False
        # Lightning clears gradients by the same rule.
        if batch_idx % number == 0 or not self._has_window:
            self._window.take()
            self._dropped, self._has_window = 0, True
        if self._accumulates:
            if self._batch is self._window:
                self._batch = BatchUndo(self._trainer, self._module)
            self._batch.take()

    def before_backward(self, loss: Tensor) -> None:
        """Note the loss, and what was accumulated before it.

        Raises:
            ModelError: no gradient flows from the loss.
        """
        require_graph(loss, self._module)
        self._losses.append(loss.detach())
        if self._accumulates:
            self._gradients.take(parameters_of_all(self._trainer.optimizers))

    def after_backward(self) -> None:
        """While batches accumulate, drop the one that has just been added if it is bad."""
        if not self._accumulates:
            return
        norm = None
        if loss_scaler(self._trainer) is None:  # else an overflow is the scaler's own business
            norm = gradients_of(self._trainer, self._trainer.optimizers[0]).norm()
        reading = self._read(norm)
        judged = self._without_overflow(reading)
        if judged.norm is not None and math.isfinite(judged.norm):
            judged = replace(judged, norm=None)  # of several batches; judged at the step
        verdict = self._verdict(judged, 0)
        if verdict is None:
            return
        self._note(verdict, reading, whole_step=False)
        self._dropped += 1
        self._gradients.restore()
        if self._trainer.world_size > 1 and not self._trainer.fit_loop._should_accumulate():
            self._gradients.average()  # DDP averaged the bad one with the others
        self._batch.restore(draws=self._draws_again)

    def before_step(self, optimizer: Optimizer) -> None:
        """Let the step of an optimizer pass, or have no effect."""
        if self.is_skipping:  # an earlier step of this batch, or an earlier evaluation of this step
            self._step.skip(optimizer)
            return
        gradients = gradients_of(self._trainer, optimizer)
        if gradients.is_empty and not self._losses:
            if self._accumulates and self._dropped:  # all of them
                self._step.skip(optimizer)
            return  # training_step gave no loss
        if evaluates_repeatedly(optimizer):
            self._step.keep_before(optimizer)
        reading = self._read(gradients.norm())
        verdict = self._verdict_of_step(self._without_overflow(reading), optimizer)
        if verdict is not None:
            self._note(verdict, reading, whole_step=True)
            self._step.skip(optimizer)
            return
        self.stepped = True
        if not self._automatic:  # later steps may be skipped, and this one stays
            self._window.take()

    def ending(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        """A ``training_step`` by hand after which skipped steps are taken back at once.

        Its steps pass through no hook of the module. At the end of the batch callbacks that come
        before the guard (an average of the weights, say) would see what is to be taken back.
        """

        @wraps(training_step)
        def step(*args: Any, **kwargs: Any) -> Any:
            output = training_step(*args, **kwargs)
            self.after_step()
            return output

        # Lightning unwraps once to see which arguments a step takes.
        step.__wrapped__ = getattr(training_step, "__wrapped__", training_step)
        return step

    def after_step(self) -> None:
        """Take back what a skipped step did; for the moment when it has passed."""
        if self.is_skipping:
            self.has_skipped = True
            self._step.finish()
            self._window.restore(draws=self._draws_again)

    def end(self) -> None:
        """The batch ends: undo what is still to be undone."""
        self.after_step()
        if self._losses and self.trip is None:  # gradients for a step in a later batch
            reading = self._read(None)
            verdict = self._verdict(reading, 0)
            if verdict is not None:
                self._note(verdict, reading, whole_step=True)
                self._window.restore(draws=self._draws_again)
                drop_gradients(self._trainer.optimizers)
        self._losses.clear()
        self._in_a_row = self._in_a_row + 1 if self.trip else 0

    def _read(self, norm: Tensor | None) -> Reading:
        reading = read(self._trainer, self._losses, norm, self._size)
        self._losses.clear()
        self._size = None
        return reading

    @property
    def _draws_again(self) -> bool:
        return self._in_a_row < _SAME_DRAWS

    def _note(self, verdict: str, reading: Reading, *, whole_step: bool) -> None:
        if self.trip is None or whole_step:
            self.trip = Trip(verdict, reading, whole_step)

    def _verdict_of_step(self, reading: Reading, optimizer: Optimizer) -> str | None:
        number = next((n for n, o in enumerate(self._trainer.optimizers) if o is optimizer), 0)
        again = number in self._evaluated
        self._evaluated.add(number)
        if again and self._automatic and reading.is_finite:
            return None  # a trial within a step, no step of its own
        self._judge.expect(number, count_trained(optimizer))
        return self._verdict(reading, number)

    def _verdict(self, reading: Reading, number: int) -> str | None:
        verdict = self._judge.verdict(reading, number)
        if verdict is None and reading.loss is not None:
            self.loss = reading.loss
        return verdict

    def _without_overflow(self, reading: Reading) -> Reading:
        """Leave out what is not finite only because of the loss scale: the scaler sees to it.

        At a scale of 1 or less gradients are no larger than they are without a scaler, and a
        smaller one cannot mend them.
        """
        scaler = loss_scaler(self._trainer)
        if scaler is None or reading.is_finite:
            return reading
        scale = scaler.get_scale()
        if scale >= _SCALE_OF_OVERFLOW:
            return replace(reading, loss=None, norm=None)
        if reading.norm is None or math.isfinite(reading.norm) or scale <= 1:
            return reading
        return replace(reading, norm=None)
