"""The section on the learning-rate schedule, of the doctor and of a run."""

import math
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from torch.optim import Optimizer

from stablelightning.callbacks.training_length import training_epochs, training_steps
from stablelightning.errors import RecipeError
from stablelightning.mixin import StableMixin
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.schedule_length import check_length
from stablelightning.model.schedule_plan import plan_schedule
from stablelightning.optimization import examined
from stablelightning.report.schedule import schedule_section
from stablelightning.report.section import Section

if TYPE_CHECKING:
    from stablelightning.cli.sections import Patient

#: Rates that differ by less were not scaled.
_SAME = 1e-6


def planned_schedule(patient: "Patient") -> Section | None:
    """What the schedule will do to the rate; nothing of the optimizer moves."""
    optimizer = patient.optimizer
    if optimizer is None or not patient.schedulers:
        return None
    return _section(patient.trainer, optimizer, patient.schedulers[0])


def schedule_of_run(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """What the schedule was to do, and where training left it."""
    if not trainer.lr_scheduler_configs:
        return None
    own = type(model).configure_optimizers is not StableMixin.configure_optimizers
    if own and trainer.world_size > 1:
        # Lightning's estimate of the steps would make the loaders anew, for which all processes
        # are needed; this is the first one alone.
        return None
    # The schedule of the run has come to its end; the module makes another like it.
    with undisturbed_generators(), examined():
        optimizers, configs = _init_optimizers_and_lr_schedulers(model)
    notes = []
    if configs[0].reduce_on_plateau:
        first, last = _largest(optimizers[0]), _largest(trainer.optimizers[0])
        cut = f"cut the largest rate to {last:.3g}" if last < first else "cut no rate"
        notes.append(f"it had {cut} when training ended")
    else:
        planned, had = _rate(optimizers[0]), _rate(trainer.optimizers[0])
        if planned > 0 and abs(had / planned - 1) > _SAME:
            notes.append(f"the run multiplied these rates by {had / planned:.3g}")
    return _section(trainer, optimizers[0], configs[0], stopped=trainer.global_step, notes=notes)


def _section(
    trainer: L.Trainer,
    optimizer: Optimizer,
    config: Any,
    *,
    stopped: int | None = None,
    notes: list[str] | None = None,
) -> Section:
    scheduler, notes = config.scheduler, list(notes or [])
    steps = training_steps(trainer)
    by_epoch = config.interval == "epoch"
    epochs = training_epochs(trainer)
    per_tick = int(config.frequency)
    if by_epoch:
        per_tick *= math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    if by_epoch and getattr(scheduler, "interval", None) == "step":
        notes.append(
            f"{type(scheduler).__name__} is made to step with every step, and steps once an epoch "
            "here; return schedule_config(scheduler) as lr_scheduler"
        )
    ticks = epochs if by_epoch else steps
    try:
        words = check_length(scheduler, int(ticks), unit=config.interval)
    except RecipeError as error:
        words = str(error)
    except OverflowError:  # epochs without an end
        words = None
    notes += [words.rstrip(".")] if words else []
    waits = str(config.monitor) if config.reduce_on_plateau else None
    plan = plan_schedule(optimizer, scheduler, steps, steps_per_tick=per_tick, waits=waits)
    return schedule_section(plan, stopped=stopped, notes=notes)


def _largest(optimizer: Any) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _rate(optimizer: Any) -> float:
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))
