"""What the doctor and a run tell beside their own: a section for each concern that has something.

A new section is a new line in ``DOCTOR`` or ``RUN``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import lightning as L
from torch.optim import Optimizer

from stablelightning.callbacks.activation import SelectActivation
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.callbacks.monitor import MonitorSignals
from stablelightning.report.activation import race_figure
from stablelightning.report.monitor import gradient_heat_map
from stablelightning.report.section import Section
from stablelightning.words import reason_of

if TYPE_CHECKING:
    from stablelightning.model.diagnosis import Diagnosis

#: Functions of a :class:`Patient`, each giving a section, or ``None`` where it has nothing to say.
DOCTOR: tuple[str, ...] = (
    "stablelightning.callbacks.clip_sections.doctor_section",
    "stablelightning.cli.schedule.planned_schedule",
    "stablelightning.cli.latency.latency",
)

#: Functions of a Trainer and its module, called when training and testing are over.
RUN: tuple[str, ...] = (
    "stablelightning.pretraining.section.pretraining_of_run",
    "stablelightning.cli.pretrain.pretrain_of_run",
    "stablelightning.cli.sections.initialized",
    "stablelightning.cli.sections.activation",
    "stablelightning.cli.transfer.transfer_of_run",
    "stablelightning.cli.found_rate.found_rate",
    "stablelightning.cli.schedule.schedule_of_run",
    "stablelightning.cli.sections.monitored",
    "stablelightning.callbacks.clip_sections.run_section",
    "stablelightning.cli.gap.gap_of_run",
    "stablelightning.cli.decide.decisions",
    "stablelightning.report.guard.guard_section",
    "stablelightning.callbacks.sparse.sparsity_of_run",
    "stablelightning.cli.latency.latency_after_training",
)


@dataclass
class Patient:
    """What the doctor has before it; nothing of it may be changed.

    Args:
        trainer: as the recipe makes it, connected to the model and the data.
        model: as training would begin with it, or as the cures left it.
        batch: rows of the training data.
        optimizer: the first that the model configures, ``None`` if it could not be made.
        schedulers: with their intervals, as Lightning's ``LRSchedulerConfig``.
        diagnosis: what was found.
    """

    trainer: L.Trainer
    model: L.LightningModule
    batch: Any
    optimizer: Optimizer | None
    schedulers: Sequence[Any] = field(default_factory=list)
    diagnosis: "Diagnosis | None" = None


def doctor_sections(patient: Patient) -> tuple[list[Section], list[str]]:
    """What every concern says of a patient, and in words what could not be said."""
    return _made(DOCTOR, patient)


def run_sections(trainer: L.Trainer, model: L.LightningModule) -> tuple[list[Section], list[str]]:
    """What every concern says of a run, and in words what could not be said."""
    return _made(RUN, trainer, model)


def _made(names: Iterable[str], *arguments: Any) -> tuple[list[Section], list[str]]:
    sections, notes = [], []
    for name in names:
        try:
            section = _maker(name)(*arguments)
        except Exception as error:  # a part that fails must not take the others along
            reason = reason_of(error)
            notes.append(f"there is no section on {name.rpartition('.')[2]} ({reason})")
            continue
        if section is not None:
            sections.append(section)
    return sections, notes


def _maker(name: str) -> Callable[..., Section | None]:
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)  # type: ignore[no-any-return]


def callbacks_of(trainer: L.Trainer, kind: type[Any]) -> Iterator[Any]:
    """The Trainer's callbacks of one class."""
    everything: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (callback for callback in everything if isinstance(callback, kind))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def initialized(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """What was drawn for each layer, and why."""
    for callback in callbacks_of(trainer, InitializeWeights):
        if callback.report is not None:
            report = callback.report
            drawn = [
                [row.name, row.consumer, row.distribution, row.std_before, row.std_after]
                for row in report.rows
            ]
            columns = ["layer", "read by", "drawn", "std before", "std after"]
            return Section("initialize", "Initialization", report.summary(), columns, drawn)
    return None


def activation(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """Which activations raced, and which one won."""
    for callback in callbacks_of(trainer, SelectActivation):
        if callback.evidence:
            columns, rows = callback.evidence["columns"], callback.evidence["rows"]
            lead = f"{callback.chosen} was chosen"
            figure = race_figure(callback.evidence)
            return Section("activation", "Activations", lead, columns, rows, figure)
    return None


def monitored(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """The gradients of a monitored run."""
    for callback in callbacks_of(trainer, MonitorSignals):
        history, norms = callback.history, callback.history.table("grad_norm")
        if (norms > 0).any():
            figure = gradient_heat_map(history.steps, history.layers, norms)
            count = len(callback.alarms)
            readings = len(history.steps)
            lead = f"{_count(count, 'alarm')} in {_count(readings, 'reading')}"
            rows = [[alarm.step, alarm.code, alarm.layer] for alarm in callback.alarms]
            columns = ["step", "alarm", "layer"]
            return Section("gradient_norm", "Signals", lead, columns, rows, figure)
    return None
