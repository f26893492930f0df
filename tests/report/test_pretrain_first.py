"""What a run tells of its pretraining."""

import math

import pytest

from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.cli.pretrain import pretrain_of_run
from stablelightning.model.weights_report import LoadReport
from stablelightning.report.pretrain_first import pretrain_section, pretraining_losses
from tests.callbacks.modules import Plain, quiet_trainer


def record(epochs: int = 12, **changes) -> dict:
    made = {
        "kind": "supervised",
        "data": "DigitsData",
        "epochs": epochs,
        "kept": epochs,
        "train": [1 / (epoch + 1) for epoch in range(epochs)],
        "validation": [2 / (epoch + 1) for epoch in range(epochs)],
        "loaded": {},
        "taken_over": ["a", "b"],
    }
    return {**made, **changes}


def test_the_table_has_the_first_and_the_last_epoch_and_few_between():
    section = pretrain_section(record(), "pretrained by labels", {"pretrain/loss": 1 / 12})
    epochs = [row[0] for row in section.rows]
    assert (epochs[0], epochs[-1]) == (1, 12)
    assert len(epochs) <= 8
    assert section.rows[-1] == [12, 1 / 12, 2 / 12]
    assert section.numbers == {"pretrain/loss": 1 / 12}
    assert "2 parameters and buffers" in section.notes[0]


def test_the_picture_has_both_losses_and_the_epoch_that_was_kept():
    axes = pretraining_losses(record(3, kept=2)).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["training"] == [1, 1 / 2, 1 / 3]
    assert lines["validation"] == [2, 1, 2 / 3]
    assert [2, 2] in [list(line.get_xdata()) for line in axes.lines]
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("losses", [[0.0, -1.0], [math.nan, math.nan]])
def test_losses_that_have_no_logarithm_are_drawn_all_the_same(losses):
    made = record(2, train=losses, validation=[], kind="contrastive")
    assert pretraining_losses(made).axes[0].get_yscale() == "linear"
    assert pretrain_section(made, "", {}).rows[-1][2] is None


def test_weights_alone_have_no_picture():
    section = pretrain_section(record(0, train=[], validation=[]), "a.pt fits 100%", {})
    assert section.figure is None
    assert section.rows == []


def test_a_run_tells_of_what_it_began_with():
    first = PretrainFirst(weights="a.pt")
    trainer = quiet_trainer(first)
    assert pretrain_of_run(trainer, Plain()) is None
    assert pretrain_of_run(quiet_trainer(), Plain()) is None
    loaded = {"share": 0.9, "summary": "a.pt fits"}
    first.record = record(0, train=[], validation=[], kind="", loaded=loaded)
    first.report = LoadReport("a.pt", "Net", ("w",), ("v",), (), (), share=0.9)
    section = pretrain_of_run(trainer, Plain())
    assert section.lead == "a.pt fits"
    assert section.numbers == {"pretrain/loaded_share": 0.9}
    assert any("missing: v" in note for note in section.notes)
