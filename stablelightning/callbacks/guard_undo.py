"""Undoing a batch in Lightning: what it logged, what it stepped, what it counted."""

import copy
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import LBFGS, Optimizer

from stablelightning.callbacks.guard_gradients import drop_gradients
from stablelightning.model.kept_optimizer import KeptOptimizer, copied_groups, restore_groups
from stablelightning.model.undo import ForwardUndo, KeptMetric


class BatchUndo:
    """What a batch's forward changes: the model's buffers and the like, and what is logged.

    Args:
        trainer: of the run.
        pl_module: its module.
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._forward = ForwardUndo(pl_module)
        self._results = trainer.fit_loop.epoch_loop._results
        self._logged: dict[str, tuple[Any, dict[str, Any], KeptMetric | None]] = {}

    def relist(self) -> None:
        """Look for modules that were added or taken away."""
        self._forward.relist()

    def take(self) -> None:
        """Remember everything as it is now."""
        self._forward.take()
        # Sums are replaced and not written, so that to remember them is to hold them.
        self._logged = {
            name: (item, dict(vars(item)), None if item.is_tensor else KeptMetric(item.value))
            for name, item in self._results.items()
        }

    def restore(self, *, draws: bool) -> None:
        """Give back what was remembered; the generators only if ``draws``."""
        self._forward.restore(draws=draws)
        for name in [name for name in self._results if name not in self._logged]:
            del self._results[name]
        for item, attributes, metric in self._logged.values():
            vars(item).clear()
            vars(item).update(attributes)
            if metric is not None:
                metric.restore()


class StepUndo:
    """Lets the steps of optimizers pass without effect, and takes back what they did all the same.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._groups: list[list[dict[str, Any]]] = []
        self._kept: dict[int, _KeptStep] = {}
        self._schedules: list[Any] = []
        self._scale: tuple[Tensor, Tensor] | None = None
        self.steps = 0

    @property
    def is_skipping(self) -> bool:
        """Whether a step is being skipped in this batch."""
        return self.steps > 0

    def begin(self) -> None:
        """A new batch."""
        self._kept = {}
        self.steps = 0

    def keep_before(self, optimizer: Optimizer) -> None:
        """Copy what an optimizer is about to write that asks for the loss several times a step."""
        self._kept.setdefault(id(optimizer), _KeptStep(optimizer))

    def skip(self, optimizer: Optimizer) -> None:
        """Let the step that begins now pass without effect; for ``on_before_optimizer_step``."""
        if not self.is_skipping:
            self._keep_all()
        self.steps += 1
        if not _leaves_without_gradient(optimizer):
            self.keep_before(optimizer)
        scaler = loss_scaler(self._trainer)
        if scaler is not None and _optimizer_handles_unscaling(optimizer):
            # A fused optimizer unscales within its step. Without a gradient the scaler would find
            # nothing to check, and fail; now it has checked.
            stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
            if stage is OptState.READY:
                scaler.unscale_(optimizer)
        drop_gradients([optimizer])

    def _keep_all(self) -> None:
        self._groups = [copied_groups(optimizer) for optimizer in self._trainer.optimizers]
        if not self._trainer.lightning_module.automatic_optimization:  # else they are not called
            configs = self._trainer.lr_scheduler_configs
            self._schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in configs]
        scaler = loss_scaler(self._trainer)
        if scaler is not None and scaler._scale is not None:
            self._scale = scaler._scale.clone(), scaler._growth_tracker.clone()

    @torch.no_grad()
    def finish(self) -> None:
        """Take back what the skipped steps changed, and the Trainer's count of them."""
        for config, state in zip(self._trainer.lr_scheduler_configs, self._schedules, strict=False):
            config.scheduler.load_state_dict(state)
        for optimizer, groups in zip(self._trainer.optimizers, self._groups, strict=True):
            restore_groups(optimizer, groups)
        for kept in self._kept.values():
            kept.restore()
        scaler = loss_scaler(self._trainer)
        if scaler is not None and self._scale is not None:
            scaler._scale.copy_(self._scale[0])
            scaler._growth_tracker.copy_(self._scale[1])
        drop_gradients(self._trainer.optimizers)
        progress = _step_progress(self._trainer)
        for count in (progress.total, progress.current):
            count.ready -= self.steps
            count.completed -= self.steps
        self._scale = None
        self.begin()


class _KeptStep:
    """An optimizer and its parameters, before a step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = KeptOptimizer(optimizer)
        self._attributes = [
            (optimizer, {k: v for k, v in vars(optimizer).items() if isinstance(v, int | float)})
        ]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._weights = [(p, p.detach().clone()) for p in parameters]

    def restore(self) -> None:
        self._optimizer.restore()
        for owner, attributes in self._attributes:
            vars(owner).update(attributes)
        for parameter, value in self._weights:
            parameter.data.copy_(value)


def evaluates_repeatedly(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer asks for the loss several times, and moves in between."""
    return isinstance(optimizer, LBFGS)


def _leaves_without_gradient(optimizer: Optimizer) -> bool:
    """Whether a parameter without a gradient is left alone, with all that belongs to it."""
    return type(optimizer).__module__.startswith("torch.optim.") and not isinstance(
        optimizer, LBFGS
    )


def loss_scaler(trainer: L.Trainer) -> Any:
    """The loss scaler, ``None`` where none is at work."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def is_by_steps(trainer: L.Trainer, scheduler: Any) -> bool:
    """Whether Lightning steps a scheduler with the optimizer, and not with epochs."""
    configs = trainer.lr_scheduler_configs
    return any(c.scheduler is scheduler and c.interval == "step" for c in configs)


def _step_progress(trainer: L.Trainer) -> Any:
    loop = trainer.fit_loop.epoch_loop
    if trainer.lightning_module.automatic_optimization:
        return loop.automatic_optimization.optim_progress.optimizer.step
    return loop.manual_optimization.optim_step_progress
