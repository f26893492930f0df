"""When signals are measured during training, where they are logged, and who hears of alarms."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.gradients import gradients_of
from stablelightning.callbacks.guard import GuardTraining
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.callbacks.steps import unobserved
from stablelightning.checks import check_whole
from stablelightning.errors import MissingPackageError, RecipeError, StableLightningWarning
from stablelightning.model.activity import followed_layers
from stablelightning.model.alarms import Alarm
from stablelightning.model.attribution import LayerRole
from stablelightning.model.history import History
from stablelightning.model.monitor import Reading, SignalMonitor
from stablelightning.model.unit_record import STARTING_LOOKS
from stablelightning.model.weight_watch import Before
from stablelightning.report.monitor import gradient_heat_map
from stablelightning.report.wandb import log_figure, log_table
from stablelightning.words import some

_log = logging.getLogger(__name__)

#: Names of layers in one warning; the list of alarms has them all.
_NAMED = 4


class MonitorSignals(StableCallback):
    """Watch gradients, updates and activations of every layer during ``fit``, and warn of faults.

    Training is the same to the bit with and without it. Logged, every ``every_n_steps`` steps and
    at each of the first four, to every logger of the Trainer, as ``monitor/<quantity>/<layer>``:

    - ``grad_norm``: L2 norm of the gradient that the optimizer is given, unscaled, before clipping;
      also of all parameters together, as ``monitor/grad_norm``;
    - ``update_ratio``: norm of the change in one step over the norm of the weights; around 1e-3 is
      usual;
    - ``distance``: norm of (weights now - weights at the start) over the norm at the start;
    - ``activation_mean``, ``activation_std``: of what the layer's function puts out; the mean over
      units, and the root mean square over units of the standard deviation over the data;
    - ``dead``: share of units that were where their function is flat for each of the last
      ``window`` examples; ``died`` and ``revived``: of these, and of those that are not, the ones
      that were not, and were, dead in the first four steps (as shares of all units);
    - ``saturated``: share of values in a flat end of a function such as tanh.

    A step is an optimizer's step: with accumulated gradients, all batches of a measured step are
    looked at. Of several optimizers each is measured at its own next step. With several processes
    activations are those of all of them. Numbers are read one step late, so that nothing waits for
    the device.

    Alarms, each once per layer: in a warning, in ``alarms`` and as a table in W&B:
    ``dead-units``, ``saturated-units`` (half of the values), ``layer-not-learning`` (a layer that
    stays where it started while others move) and ``non-finite-gradient``.

    Args:
        every_n_steps: number of optimizer steps between measurements, >= 1. At 50, which is also
            how often Lightning logs, a measured step may cost half as much again for 1% in the
            mean.
        window: number of examples over which a unit must be still to be dead, >= 1. Rows of a
            batch count, not positions; only measured steps are seen.
        dead_share: share of a layer's units whose death is an alarm, in (0, 1].
        activations: whether to look at activations; ``False`` leaves gradients and weights.

    Attributes:
        alarms: all alarms, in order, as :class:`~stablelightning.model.alarms.Alarm`.
        history: what was measured, by step and layer, thinned to at most 512 readings.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model.

    Source:
        Lu, Shin, Su, Karniadakis 2019, arXiv:1903.06733 (units that die); You, Gitman, Ginsburg
        2017, arXiv:1708.03888 (the ratio of a layer's update to its weights).

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> monitor = MonitorSignals(every_n_steps=10)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[monitor],
        ... )
        >>> trainer.fit(BoringModel())
        >>> monitor.history.steps
        [0, 1, 2, 3, 10, 20, 30, 40, 50, 60]
        >>> monitor.alarms
        []
    """

    rank = 20  # after what skips a step, before what clips its gradients

    def __init__(
        self,
        every_n_steps: int = 50,
        *,
        window: int = 512,
        dead_share: float = 0.4,
        activations: bool = True,
    ) -> None:
        _check_settings(every_n_steps, window, dead_share)
        self.every_n_steps = every_n_steps
        self.window = window
        self.dead_share = dead_share
        self.activations = activations
        self._monitor = SignalMonitor(window=window, dead_share=dead_share)
        self._forget_run()
        self.leave()

    def _forget_run(self) -> None:
        self._monitor = SignalMonitor(window=self.window, dead_share=self.dead_share)
        self._steps = 0  # batches in which an optimizer stepped
        self._due: set[int] = set()  # optimizers to be measured at their next step
        self._looking = False  # whether activations belong to a measured step

    def leave(self) -> None:
        """Nothing of ours stays in the model, in an optimizer or between two batches."""
        self._monitor.release()
        for handle in getattr(self, "_handles", {}).values():
            handle.remove()
        self._handles: dict[int, Any] = {}
        self._before: dict[int, Before] = {}
        self._stepped = False

    @property
    def alarms(self) -> list[Alarm]:
        """All alarms, in order."""
        return self._monitor.alarms

    @property
    def history(self) -> History:
        """What was measured, by step and layer."""
        return self._monitor.history

    # ---- when -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check what cannot be measured, and begin anew unless this Trainer goes on."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_shards(
            trainer,
            needs="MonitorSignals needs whole weights and gradients",
            remedy="use strategy='ddp', or remove MonitorSignals",
        )
        if trainer.global_step == 0:
            self._forget_run()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the activations of this batch if its step is measured."""
        if trainer.barebones:
            return
        if not self._monitor.is_bound:
            self._bind(trainer, pl_module, batch)
        early = self._steps < STARTING_LOOKS
        if not self._looking and (early or self._steps % self.every_n_steps == 0):
            self._due = set(range(len(trainer.optimizers)))
            self._looking = True
        if self._looking:
            self._monitor.look()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure one optimizer's gradients and, when it has stepped, what became of its weights.

        Lightning calls this after unscaling, with the gradients of all processes and batches added
        up, and before it clips.
        """
        if gradients_of(trainer, optimizer).is_empty:
            return  # nothing is learned: there was no loss, or the guard takes the step back
        self._stepped = True
        if not self._due:
            return
        number = next((n for n, o in enumerate(trainer.optimizers) if o is optimizer), -1)
        if number not in self._due or number in self._before:
            return  # not now; or an optimizer that runs backward several times in one step
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = None
        if scaler is not None and _optimizer_handles_unscaling(optimizer):
            scale = scaler._get_scale_async()  # fused optimizers unscale within their step
        self._before[number] = self._monitor.before_step(
            (p for group in optimizer.param_groups for p in group["params"]),
            scale=scale,
            scaled=scaler is not None,
        )
        # Lightning has no hook after a step, and in manual optimization the batch may end much
        # later. The scaler may also skip the step, which then counts for nothing.
        after = partial(self._after_step, number)
        self._handles[number] = optimizer.register_step_post_hook(after)

    def _after_step(self, number: int, *_: Any) -> None:
        before = self._before.pop(number, None)
        if before is not None:
            self._monitor.after_step(before)
            self._due.discard(number)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what was measured a step ago, and send off what was measured now."""
        if trainer.barebones:
            return
        self._monitor.look_away()
        if any(c.has_undone for c in trainer.callbacks if isinstance(c, GuardTraining)):  # type: ignore[attr-defined]
            self._monitor.forget()
        self._log_received(trainer)
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._before = {}, {}
        if self._monitor.has_stepped:
            gather = trainer.strategy.all_gather if trainer.world_size > 1 else None
            self._monitor.send(trainer.fit_loop.epoch_loop._batches_that_stepped, gather=gather)
            self._looking = False
        if self._stepped:
            self._steps += 1
            self._stepped = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look away after an epoch that ended in the middle of a batch."""
        self._monitor.look_away()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what was measured last, and the picture of the run."""
        self._log_received(trainer)
        loggers = list(_with_figures(trainer.loggers))
        if trainer.is_global_zero and loggers and len(self.history.steps) > 1:
            with suppress(MissingPackageError):
                table = self.history.table("grad_norm")
                figure = gradient_heat_map(self.history.steps, self.history.layers, table)
                log_figure(loggers, "monitor/grad_norm_by_layer", figure)

    # ---- the model ------------------------------------------------------------------------------

    def _bind(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        activations = self.activations
        if activations and _is_compiled(pl_module):
            activations = False
            rank_zero_warn(
                "MonitorSignals sees no activations in a compiled model, whose hooks never fire: "
                "it measures gradients and weights. To see dead and saturated units too, train "
                "without torch.compile; activations=False says that you do not want them.",
                category=StableLightningWarning,
            )
        roles = _roles(trainer, pl_module, batch) if activations else []
        if not self._monitor.bind(pl_module, roles, activations=activations):
            rank_zero_warn(
                "MonitorSignals begins anew: the checkpoint's signals are of another model.",
                category=StableLightningWarning,
            )

    # ---- what is told ---------------------------------------------------------------------------

    def _log_received(self, trainer: L.Trainer) -> None:
        reading = self._monitor.receive()
        if reading is None:
            return
        values = {f"monitor/{key}": value for key, value in reading.values().items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=reading.step)
        if reading.alarms:
            self._raise_alarms(trainer, reading)

    def _raise_alarms(self, trainer: L.Trainer, reading: Reading) -> None:
        for code in dict.fromkeys(alarm.code for alarm in reading.alarms):
            first, *others = (alarm for alarm in reading.alarms if alarm.code == code)
            message = f"MonitorSignals at step {reading.step}, {code}: {first.message}"
            if others:
                message += f" The same in {some([alarm.layer for alarm in others], _NAMED)}."
            rank_zero_warn(message, category=StableLightningWarning)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        columns = ["step", "code", "layer", "message"]
        rows = [[a.step, a.code, a.layer, a.message] for a in self.alarms]
        log_table(loggers, "monitor/alarms", columns, rows)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what will be logged; plain types and tensors."""
        return {
            "steps": self._steps,
            "due": sorted(self._due),
            "looking": self._looking,
            "monitor": self._monitor.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, to train."""
        if not self.goes_on:
            return
        self._steps = state_dict["steps"]
        self._due = set(state_dict["due"])
        self._looking = state_dict["looking"]
        self._monitor.load_state_dict(state_dict["monitor"])


def _check_settings(every_n_steps: int, window: int, dead_share: float) -> None:
    for name, value in (("every_n_steps", every_n_steps), ("window", window)):
        check_whole(name, value, least=1)
    if not 0 < dead_share <= 1:
        raise RecipeError(
            f"dead_share must be in (0, 1], got {dead_share}; 1 warns only of layers all of whose "
            "units are dead."
        )


def _is_compiled(pl_module: L.LightningModule) -> bool:
    return getattr(pl_module, "_compiler_ctx", None) is not None or any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in pl_module.modules()
    )


def _roles(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> Sequence[LayerRole]:
    """What a watched forward says of the layers; where there can be none, activation modules do."""
    try:
        inputs, _ = inputs_and_target(pl_module, batch)
        with unobserved(trainer, pl_module), torch.no_grad():
            return followed_layers(pl_module, inputs)
    except Exception as error:  # whatever a forward raises that is not meant to be called alone
        _log.debug("activations are taken from modules: %s", error)
        return []


def _with_figures(loggers: Iterable[Logger]) -> Iterable[Logger]:
    for logger in loggers:
        if isinstance(logger, WandbLogger) or hasattr(
            getattr(logger, "experiment", None), "add_figure"
        ):
            yield logger
