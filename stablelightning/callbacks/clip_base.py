"""When gradients are clipped, where it is refused, and what is told of it; no mathematics."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.gradients import (
    Gradients,
    count_trained,
    gradients_of,
    require_graph,
)
from stablelightning.errors import MissingPackageError, RecipeError
from stablelightning.functional.clip import whole
from stablelightning.model.clip import AutoThreshold, ClipRecord
from stablelightning.report.clip import clipping_curve, threshold_histogram
from stablelightning.report.wandb import log_figure

#: Numbers of so many steps are read together, so that a GPU is waited for once in ten steps.
_TOGETHER = 10


class Account:
    """What is known of one optimizer's gradients, and what is still on its way from the device.

    A bound that follows the gradients moves every tenth step, whatever is logged or saved between.

    Args:
        bound: that a measure is held against.
        auto: chooses the bound instead.
    """

    def __init__(self, bound: float, auto: AutoThreshold | None = None) -> None:
        self.record = ClipRecord()
        self.auto = auto
        self.bound = bound if auto is None else auto.value
        self._pending: list[float | Tensor] = []  # numbers first
        self._trained: int | None = None  # most parameters

    def expect(self, parameters: int) -> None:
        """Choose the bound anew where more parameters are trained than ever before.

        Layers that are unfrozen bring gradients of their own, and a bound that was chosen for the
        head alone would shorten every step from then on.
        """
        if self.auto is not None and parameters > (self._trained or parameters):
            numbers, self._pending = self.pending, []
            for number in numbers:
                self.record.add(number, self.bound)
            self.auto.measure_again()
            self.bound = self.auto.value
        self._trained = max(parameters, self._trained or 0)

    def add(self, measured: Tensor) -> None:
        """Count a step whose gradients were measured before they were clipped to ``bound``."""
        self._pending.append(measured.item() if measured.device.type == "cpu" else measured)
        due = len(self._pending) >= _TOGETHER
        if due or (self.auto is not None and len(self._pending) >= self.auto.missing > 0):
            numbers, self._pending = self.pending, []
            for number in numbers:
                self.record.add(number, self.bound)
                if self.auto is not None:
                    self.auto.add(number)
            if self.auto is not None:
                self.bound = self.auto.value

    @property
    def pending(self) -> list[float]:
        """What was measured and not counted yet; waits for the device."""
        numbers = [m for m in self._pending if not isinstance(m, Tensor)]
        tensors = [m for m in self._pending if isinstance(m, Tensor)]
        if tensors:
            numbers += torch.stack([t.to(tensors[0].device) for t in tensors]).tolist()
        return numbers

    def told(self) -> ClipRecord:
        """The record up to now, what is pending included."""
        record = ClipRecord()
        record.load_state_dict(self.record.state_dict())
        for number in self.pending:
            record.add(number, self.bound)
        return record

    def state_dict(self) -> dict[str, Any]:
        """All of it; plain types."""
        return {
            "bound": self.bound,
            "record": self.record.state_dict(),
            "auto": None if self.auto is None else self.auto.state_dict(),
            "pending": self.pending,
            "trained": self._trained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a bound that was set since then holds."""
        self.record.load_state_dict(state["record"])
        self._pending = list(state["pending"])
        self._trained = state["trained"]
        if self.auto is not None and state["auto"] is not None:
            self.auto.load_state_dict(state["auto"])
            self.bound = state["bound"]


class ClipGradients(StableCallback):
    """Base of the callbacks that make gradients smaller after unscaling and before the step.

    It knows the hook, the strategies and what is logged; a subclass says how, in :meth:`clip_`.
    Each optimizer is clipped by itself, at each of its steps: once per accumulation, in automatic
    and in manual optimization. With DDP gradients are the same on all processes, and so is what is
    done to them. A step without any gradient (a guard took them away) is none.

    Logged to every logger of the Trainer, every ``log_every_n_steps`` steps:

    - ``clip/norm`` and ``clip/norm_after``: the joint norm of an optimizer's gradients before and
      after;
    - ``clip/fraction``: share of the last hundred steps at which anything was clipped;
    - ``clip/threshold``: the bound, where it is chosen by measurement.

    With several optimizers each key ends in ``/0``, ``/1`` and so on, in the order of
    ``configure_optimizers``.

    Attributes:
        thresholds: the bound of each optimizer now; empty before the first step.
        records: what was counted of each optimizer up to now.

    Example:
        >>> class Halve(ClipGradients):
        ...     def new_account(self):
        ...         return Account(bound=0.0)
        ...
        ...     def clip_(self, gradients, optimizer, bound):
        ...         for gradient in gradients.tensors:
        ...             gradient.mul_(0.5)
        ...         return gradients.norm()
        >>> Halve().rank
        30
    """

    rank = 30  # after what skips a step, and what measures it

    #: Whether gradients may lie in shards on several devices.
    _takes_shards = False
    #: The p of the norms that are logged.
    _logged_norm = 2.0

    def __init__(self) -> None:
        self._accounts: dict[int, Account] = {}
        self._told: dict[int, dict[str, Tensor | float]] = {}
        self._drawn: set[int] = set()  # optimizers whose choice of a threshold was drawn

    # ---- how: for subclasses --------------------------------------------------------------------

    def clip_(self, gradients: Gradients, optimizer: Optimizer, bound: float) -> Tensor | None:
        """Clip in place.

        Args:
            gradients: of one optimizer, at least one tensor, without a loss scale.
            optimizer: whose they are.
            bound: of :meth:`new_account`, as it is now.

        Returns:
            What was held against the bound, a scalar: the step counts as clipped where it is more.
            ``None`` where nothing is to be counted.
        """
        raise NotImplementedError

    def new_account(self) -> Account:
        """The bound of an optimizer before its first step."""
        raise NotImplementedError

    def clip_shards_(self, trainer: L.Trainer, gradients: Gradients, bound: float) -> Tensor:
        """Clip where a strategy must be asked for the norm of all shards; returns the norm."""
        raise NotImplementedError

    # ---- when -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check what cannot be clipped, and begin anew unless this Trainer goes on.

        Raises:
            RecipeError: something else clips as well, or the strategy keeps the gradients.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._refuse(trainer)
        if trainer.global_step == 0:
            self._accounts, self._drawn = {}, set()

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Refuse a loss that leaves no gradients to clip."""
        require_graph(loss, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip the gradients of one optimizer.

        Lightning calls this after unscaling, with the gradients of all processes and batches added
        up.
        """
        gradients = gradients_of(trainer, optimizer)
        if gradients.is_empty:
            return
        number = next((n for n, o in enumerate(trainer.optimizers) if o is optimizer), 0)
        if number not in self._accounts:
            self._accounts[number] = self.new_account()
        account = self._accounts[number]
        if account.auto is not None:
            account.expect(count_trained(optimizer))
        if isinstance(trainer.strategy, FSDPStrategy):
            _refuse_several(trainer)
            norm = self.clip_shards_(trainer, gradients, account.bound)
            self._told[number] = {"norm": norm, "norm_after": norm.clamp(max=account.bound)}
            account.add(norm)
            return
        logged = _is_logged(trainer)
        if logged:
            self._told[number] = {"norm": whole(gradients.norm(self._logged_norm))}
        with unscaled(gradients) as plain:
            measured = self.clip_(plain, optimizer, account.bound)
        if measured is not None:
            account.add(measured)
        if logged:
            after = gradients_of(trainer, optimizer).norm(self._logged_norm)
            self._told[number]["norm_after"] = whole(after)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log, where this step is logged."""
        if self._told and _is_logged(trainer):
            values = self._values(trainer)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            self._draw_choices(trainer)
        self._told = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the picture of the run."""
        if not trainer.is_global_zero or not trainer.loggers:
            return
        self._draw_choices(trainer)
        for number, account in self._accounts.items():
            record = account.told()
            if self.curve and len(record.lows) > 1:
                with suppress(MissingPackageError):
                    figure = clipping_curve(record, label=self.curve)
                    log_figure(trainer.loggers, self._key(trainer, "norms", number), figure)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Forget the step that failed."""
        self._told = {}

    # ---- what is told ---------------------------------------------------------------------------

    #: What the measure is called in a picture; empty where it makes none.
    curve = ""

    @property
    def thresholds(self) -> list[float]:
        """The bound of each optimizer now; empty before the first step."""
        return [account.bound for account in self._accounts.values()]

    @property
    def records(self) -> list[ClipRecord]:
        """What was counted of each optimizer up to now."""
        return [account.told() for account in self._accounts.values()]

    @property
    def first_norms(self) -> list[list[float]]:
        """The norms that each optimizer's threshold was chosen from; empty where it was given."""
        autos = (account.auto for account in self._accounts.values())
        return [[] if auto is None else list(auto.first) for auto in autos]

    def _values(self, trainer: L.Trainer) -> dict[str, float]:
        values = {}
        for number, told in self._told.items():
            account = self._accounts[number]
            numbers: dict[str, Tensor | float] = dict(told)
            record = account.told()
            if record.steps:
                numbers["fraction"] = record.fraction
            if account.auto is not None:
                numbers["threshold"] = account.bound
            for name, value in numbers.items():
                values[self._key(trainer, name, number)] = float(value)
        return values

    def _draw_choices(self, trainer: L.Trainer) -> None:
        """Draw each threshold once, when it is chosen."""
        for number, account in self._accounts.items():
            chosen = account.auto is not None and not account.auto.is_measuring
            if not chosen or number in self._drawn or account.auto is None:
                continue
            self._drawn.add(number)
            if trainer.is_global_zero:
                with suppress(MissingPackageError):
                    figure = threshold_histogram(account.auto.first, account.auto.chosen)
                    log_figure(
                        trainer.loggers, self._key(trainer, "threshold_choice", number), figure
                    )

    def _key(self, trainer: L.Trainer, name: str, number: int) -> str:
        return f"clip/{name}/{number}" if len(trainer.optimizers) > 1 else f"clip/{name}"

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Thresholds, counts and curves of each optimizer; plain types."""
        accounts = {number: account.state_dict() for number, account in self._accounts.items()}
        return {"accounts": accounts, "drawn": sorted(self._drawn)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, to train."""
        if not self.goes_on:
            return
        self._accounts = {}
        for number, state in state_dict["accounts"].items():
            self._accounts[number] = self.new_account()
            self._accounts[number].load_state_dict(state)
        self._drawn = set(state_dict["drawn"])

    # ---- what is refused ------------------------------------------------------------------------

    def _refuse(self, trainer: L.Trainer) -> None:
        name = type(self).__name__
        if trainer.gradient_clip_val:
            raise RecipeError(
                f"gradients must be clipped once, got {name} beside "
                f"Trainer(gradient_clip_val={trainer.gradient_clip_val}); leave one of them out "
                "(recommended_callbacks() and the slot stable.clip bring the callback)."
            )
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        clippers = [c for c in callbacks if isinstance(c, ClipGradients)]
        if len(clippers) > 1:
            names = " and ".join(type(c).__name__ for c in clippers)
            raise RecipeError(f"gradients must be clipped once, got {names}; remove all but one.")
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise RecipeError(
                f"{name} needs gradients before the step, and DeepSpeed keeps them inside its "
                "engine; remove it, and set Trainer(gradient_clip_val=1.0), which Lightning hands "
                "to DeepSpeed."
            )
        sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded and not self._takes_shards:
            raise RecipeError(
                f"{name} needs whole gradients on every process, got "
                f"{type(trainer.strategy).__name__}; use ClipGradientNorm, or strategy='ddp'."
            )


@contextmanager
def unscaled(gradients: Gradients) -> Iterator[Gradients]:
    """Inside, gradients are without the loss scale that a fused optimizer takes out in its step.

    A scale is a power of two unless somebody chose another, so that nothing is rounded.
    """
    if gradients.scale is None:
        yield gradients
        return
    tensors = gradients.tensors
    for tensor in tensors:
        tensor.div_(gradients.scale)
    try:
        yield Gradients(tensors, None)
    finally:
        for tensor in tensors:
            tensor.mul_(gradients.scale)


def _is_logged(trainer: L.Trainer) -> bool:
    every = 0 if trainer.barebones else trainer.log_every_n_steps  # type: ignore[attr-defined]
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    return bool(every and trainer.loggers) and step % every == 0


def _refuse_several(trainer: L.Trainer) -> None:
    if len(trainer.optimizers) > 1:
        raise RecipeError(
            "FSDP clips the gradients of the whole module together, got "
            f"{len(trainer.optimizers)} optimizers; use one optimizer, or strategy='ddp'."
        )
