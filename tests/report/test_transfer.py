"""What a run tells of its fine-tuning."""

from types import SimpleNamespace

import pytest

from stablelightning.callbacks import ChooseTransfer, UnfreezeGradually
from stablelightning.cli.transfer import transfer_of_run
from stablelightning.functional.probe import ProbeScore
from stablelightning.model.probe import ProbeProfile
from stablelightning.model.transfer_choice import TransferChoice
from stablelightning.report.transfer import probe_curve, transfer_section
from tests.callbacks.modules import quiet_trainer
from tests.callbacks.transfer import Pretrained

NAMES = ("stem", "block", "head")
SCORES = (None, ProbeScore(0.7, 0.1, 0.05), ProbeScore(0.9, 0.1, 0.03))
PROFILE = ProbeProfile("accuracy", NAMES, SCORES, 50, 10, 5)
NEAR = TransferChoice(3, 2, 2, False, None, "ten labels")
FAR = TransferChoice(3, 1, 3, True, None, "far")
HISTORY = [
    {"epoch": 0, "step": 0, "open_groups": 1, "opened": ["head"]},
    {"epoch": 1, "step": 7, "open_groups": 2, "opened": ["block"]},
]


def test_the_curve_has_the_depths_that_were_probed():
    axes = probe_curve(PROFILE).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2]
    assert list(axes.lines[0].get_ydata()) == [0.7, 0.9]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["inputs", "after stem", "after block"]


@pytest.mark.parametrize(
    ("choice", "marks", "title"),
    [
        (NEAR, ["frozen", "kept, opened", "head"], "all kept below the head, 2 of 3 groups opened"),
        (FAR, ["kept, opened", "drawn anew", "head"], "1 of 2 kept below the head, 3 of 3"),
        (TransferChoice(3, 2, 1, True, None, ""), ["frozen", "head"], "1 of 3 groups opened"),
    ],
)
def test_what_was_chosen_is_marked(choice, marks, title):
    figure = probe_curve(PROFILE, choice)
    assert [text.get_text() for text in figure.axes[0].texts] == ["chance", *marks]
    assert title in figure.get_suptitle()


def test_explained_variance_has_its_name():
    profile = ProbeProfile("r2", NAMES, (None, None, ProbeScore(0.5, 0.0, 0.1)), 50, 0, 50)
    assert probe_curve(profile).axes[0].get_ylabel() == "variance that a probe explains"


def test_the_section_has_every_opening_and_the_reason():
    raced = [
        {"name": "rule", "plan": "keep all", "losses": [0.5, 0.25], "failure": ""},
        {"name": "head", "plan": "the head", "losses": [None, None], "failure": "no gradient"},
    ]
    section = transfer_section(
        HISTORY, groups=3, choice=NEAR, profile=PROFILE, reason="ten labels", raced=raced
    )
    assert section.lead == "2 of 3 depth groups were open in the end"
    assert section.rows == [[0, 0, 1, "head"], [1, 7, 2, "block"]]
    assert section.notes[0] == "ten labels"
    assert section.notes[1] == "raced: 'rule' (keep all), validation loss 0.5, 0.25"
    assert section.notes[2].endswith("validation loss none, none (no gradient)")
    assert section.numbers == {
        "unfreeze/open_groups": 2.0,
        "unfreeze/keep_layers": 2.0,
        "unfreeze/probe": 0.9,
    }
    assert section.figure is not None


def test_nothing_is_told_of_a_run_without_freezing():
    assert transfer_section([], groups=0) is None
    assert transfer_of_run(SimpleNamespace(callbacks=[]), None) is None


@pytest.mark.parametrize("callback", [ChooseTransfer(), UnfreezeGradually()])
def test_a_run_tells_of_its_plan(callback):
    trainer = quiet_trainer(callback, max_epochs=2)
    assert transfer_of_run(trainer, None) is None
    trainer.fit(Pretrained(count=20))
    section = transfer_of_run(trainer, None)
    assert len(section.rows) == len(callback.history)
    assert (section.figure is not None) == isinstance(callback, ChooseTransfer)
