"""What a run's report says of the rate that was found for it."""

import lightning as L

from stablelightning.callbacks import FindLearningRate, HalveLearningRate
from stablelightning.cli.found_rate import found_rate
from tests.callbacks.modules import quiet_trainer
from tests.callbacks.test_learning_rate import Teacher


def section_of(*callbacks: L.Callback):
    trainer = quiet_trainer(*callbacks, max_steps=1, max_epochs=-1)
    model = Teacher()
    trainer.fit(model)
    return found_rate(trainer, model)


def test_a_sweep_becomes_numbers_a_table_and_a_picture():
    find = FindLearningRate(steps=60, confirm_steps=40)
    section = section_of(find)
    assert section.numbers == {
        "learning_rate/suggested": find.suggested,
        "learning_rate/diverged_at": find.diverged_at,
    }
    assert [row[0] for row in section.rows] == [run["rate"] for run in find.history["runs"]]
    assert len(section.figure.axes) == 2
    assert "was 0.001" in section.lead
    str(section)


def test_a_rate_that_was_only_suggested_is_not_called_found():
    section = section_of(FindLearningRate(steps=60, confirm_steps=40, apply=False))
    assert section.lead.startswith("suggested ")
    assert ", kept 0.001: " in section.lead


def test_what_did_not_diverge_has_no_number_for_it():
    section = section_of(HalveLearningRate(steps=5))
    assert list(section.numbers) == ["learning_rate/suggested"]
    assert len(section.figure.axes) == 1


def test_nothing_tried_nothing_told():
    assert section_of() is None
    assert section_of(L.Callback()) is None
