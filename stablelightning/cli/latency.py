"""The section on latency: of the doctor's page, before training, and of a run's report."""

from typing import Any

import lightning as L

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.before import first_member
from stablelightning.callbacks.example import example_batch
from stablelightning.callbacks.export import ExportModel
from stablelightning.cli.sections import Patient, callbacks_of
from stablelightning.model.latency import LatencyReport, measure_latency
from stablelightning.model.step import silenced
from stablelightning.report.latency import latency_section
from stablelightning.report.section import Section

#: A part of a page, and no benchmark: about so long.
_SECONDS = 1.0


def latency(patient: Patient) -> Section:
    """How fast the model will be when it is trained."""
    return latency_section(_measured(patient.model, patient.batch))


def latency_after_training(trainer: L.Trainer, model: L.LightningModule) -> Section:
    """How fast the model is, and what was exported."""
    exports = list(callbacks_of(trainer, ExportModel))
    known = next((e.latency for e in exports if e.latency is not None), None)
    section = latency_section(known or _measured(model, example_batch(trainer, model)))
    section.notes += [f"exported {file}" for e in exports for file in e.exported]
    return section


def _measured(model: L.LightningModule, batch: Any) -> LatencyReport:
    """Measured on copies; the model is left as it is."""
    inputs, _ = inputs_and_target(model, batch)
    with first_member(model), silenced(model):  # of an ensemble, that of a member
        return measure_latency(model, inputs, seconds=_SECONDS)
