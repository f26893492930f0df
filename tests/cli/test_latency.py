"""The sections on latency, as the doctor and a run ask for them."""

import lightning as L
import torch

from stablelightning.callbacks import ExportModel
from stablelightning.cli.latency import latency, latency_after_training
from stablelightning.cli.sections import DOCTOR, RUN, Patient
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Seeded


def test_both_are_asked_for():
    assert "stablelightning.cli.latency.latency" in DOCTOR
    assert "stablelightning.cli.latency.latency_after_training" in RUN


def test_the_doctor_measures_a_copy():
    model = Seeded()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = (torch.randn(4, 4), torch.zeros(4).long())
    section = latency(Patient(quiet_trainer(), model, batch, None))
    assert section.rows[0][0] == 1
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_run_takes_what_the_callback_has_measured(tmp_path):
    export = ExportModel(tmp_path, batch_sizes=[3])
    trainer: L.Trainer = quiet_trainer(export, max_epochs=1)
    model = Seeded()
    trainer.fit(model)
    section = latency_after_training(trainer, model)
    assert [row[0] for row in section.rows] == [3]
    assert any(note.startswith("exported model.pt2") for note in section.notes)


def test_a_run_without_the_callback_is_measured_all_the_same():
    trainer: L.Trainer = quiet_trainer(max_epochs=1)
    model = Seeded()
    trainer.fit(model)
    section = latency_after_training(trainer, model)
    assert section.rows[0][0] == 1
    assert not any("exported" in note for note in section.notes)
