"""Sections of the doctor and of a run: one that fails takes no other along."""

from types import SimpleNamespace

import lightning as L

from stablelightning.callbacks import InitializeWeights, MonitorSignals, SelectActivation
from stablelightning.cli import sections
from stablelightning.report.section import Section
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Seeded


def speaks(*_):
    return Section("speed", "Speed", "fast")


def has_nothing_to_say(*_):
    return None


def breaks(*_):
    raise ValueError("no clock")


def test_one_that_fails_leaves_a_note(monkeypatch):
    names = tuple(f"{__name__}.{made.__name__}" for made in (speaks, breaks, has_nothing_to_say))
    for group, made in (
        ("RUN", lambda: sections.run_sections(None, None)),
        ("DOCTOR", lambda: sections.doctor_sections(None)),
    ):
        monkeypatch.setattr(sections, group, names)
        told, notes = made()
        assert [section.name for section in told] == ["speed"]
        assert notes == ["there is no section on breaks (no clock)"]


def test_every_section_can_be_imported():
    for name in (*sections.DOCTOR, *sections.RUN):
        assert callable(sections._maker(name))


def test_the_gradients_of_a_monitored_run_are_drawn():
    monitor = MonitorSignals()
    trainer = SimpleNamespace(callbacks=[L.Callback(), monitor])
    assert sections.monitored(trainer, None) is None  # nothing was measured
    monitor.history.begin(["net.0", "net.2"])
    monitor.history.add(0, {"net.0": {"grad_norm": 0.1}, "net.2": {"grad_norm": 1.0}})
    section = sections.monitored(trainer, None)
    assert "10%" in section.figure.get_suptitle()
    assert section.lead == "0 alarms in 1 reading"


def test_what_was_drawn_and_what_raced_is_told():
    race = SelectActivation(candidates=["relu", "elu"], steps=2, seeds=1, finalists=2)
    trainer = quiet_trainer(InitializeWeights(), race, max_steps=1)
    assert sections.initialized(trainer, None) is None  # nothing has run
    assert sections.activation(trainer, None) is None
    trainer.fit(Seeded())
    drawn = sections.initialized(trainer, None)
    assert [row[0] for row in drawn.rows] == ["net.0", "net.4"]
    raced = sections.activation(trainer, None)
    assert raced.lead == f"{race.chosen} was chosen"
    assert raced.figure is not None
