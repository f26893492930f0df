"""What is told of a decision: the event, the cause where it can be found, numbers for loggers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from stablelightning.callbacks.guard_batch import Trip
from stablelightning.model.blame import SPIKE, UNKNOWN, Cause, cause_of
from stablelightning.model.suspects import floating_leaves
from stablelightning.report.events import DROPPED, ROLLED_BACK, SKIPPED, EventLog


@dataclass(frozen=True)
class Scene:
    """The batch of which something is told.

    Args:
        trainer: of the run.
        pl_module: its module, as it was before the batch.
        batch: as ``training_step`` got it.
        batch_idx: its number in the epoch.
        rows: indices of its rows in the dataset, ``None`` where they are not known.
    """

    trainer: L.Trainer
    pl_module: L.LightningModule
    batch: Any
    batch_idx: int
    rows: list[int] | None = None


def tell(
    events: EventLog, scene: Scene, event: dict[str, Any], *, learning_rate_factor: float
) -> None:
    """Write an event, and log what the guard counts."""
    trainer = scene.trainer
    groups = [group for o in trainer.optimizers for group in o.param_groups]
    common = {
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "batch": scene.batch_idx,
        "learning_rate": next((float(g["lr"]) for g in groups if "lr" in g), None),
    }
    events.write(trainer, common | event)
    numbers = {
        "guard/skipped": float(events.counts[SKIPPED] + events.counts[DROPPED]),
        "guard/rollbacks": float(events.counts[ROLLED_BACK]),
        "guard/learning_rate_factor": learning_rate_factor,
    }
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def event_of(
    trip: Trip, scene: Scene, *, earlier: dict[str, Tensor] | None, usual: Sequence[float]
) -> dict[str, Any]:
    """What is told of a batch that was undone; every process must ask.

    Args:
        trip: why it was undone.
        scene: the batch.
        earlier: good weights from before; ``None`` finds no cause.
        usual: sizes of a usual batch.
    """
    event: dict[str, Any] = {
        "decision": SKIPPED if trip.whole_step else DROPPED,
        "quantity": trip.quantity,
        "value": trip.value,
    }
    if earlier is not None:
        cause = cause_of(
            scene.pl_module,
            scene.batch,
            context=scene.trainer.precision_plugin.train_step_context,
            earlier=earlier,
            usual=usual,
        )
        if cause.kind == SPIKE and not trip.is_spike:
            cause = Cause(UNKNOWN, "", "all numbers are finite when the step is run again")
        event |= {
            "cause": cause.kind,
            "module": cause.module,
            "message": cause.message,
            "evidence": cause.evidence,
        }
        if scene.rows is not None:  # those at fault, or all where it is not known which
            places = cause.evidence.get("rows", range(len(scene.rows)))
            event["indices"] = [scene.rows[place] for place in places]
    return _of_the_process_at_fault(scene.trainer, event, fault=trip.fault)


def sizes(batch: Any) -> list[float]:
    """The largest absolute value of each tensor of a batch that holds floats for its rows."""
    return [float(leaf.detach().abs().max()) for leaf in floating_leaves(batch)]


def _of_the_process_at_fault(
    trainer: L.Trainer, event: dict[str, Any], *, fault: float
) -> dict[str, Any]:
    """The same event on every process: that of the one whose own values were worst."""
    if trainer.world_size == 1:
        return event
    told: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(told, (fault, event))
    rank = max(range(trainer.world_size), key=lambda number: told[number][0])
    return {**told[rank][1], "process": rank}
