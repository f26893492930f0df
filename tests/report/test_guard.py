"""The timeline and the section of a guarded run."""

import math

import lightning as L
import pytest

from stablelightning.errors import DataError
from stablelightning.report.events import EventLog
from stablelightning.report.guard import counted, guard_section, guard_timeline
from stablelightning.report.section import Section


class Keeps(L.Callback):
    def __init__(self):
        self.log = EventLog()


def guarded(*events, losses=(2.0, 1.0, 0.5)):
    callback = Keeps()
    trainer = L.Trainer(accelerator="cpu", logger=False, fast_dev_run=True, callbacks=[callback])
    for step, loss in enumerate(losses):
        callback.log.keep_loss(step, loss)
    for event in events:
        callback.log.write(trainer, event)
    return trainer


SPIKE = {"step": 1, "decision": "skipped", "quantity": "loss", "value": 1e4, "cause": "spike"}
NAN = {"step": 2, "decision": "skipped", "quantity": "loss", "value": math.nan}


def test_a_run_without_a_guard_has_no_section():
    trainer = L.Trainer(accelerator="cpu", barebones=True)
    assert guard_section(trainer, L.LightningModule()) is None


def test_a_quiet_run_says_that_nothing_was_skipped():
    section = guard_section(guarded(), L.LightningModule())
    assert isinstance(section, Section)
    assert section.lead == "no step skipped in 0 steps"
    assert section.figure is None
    assert section.numbers == {"guard/skipped": 0.0, "guard/rollbacks": 0.0}


def test_a_section_holds_the_latest_events_and_counts_all():
    trainer = guarded(*[SPIKE] * 30, NAN, {"step": 3, "decision": "rolled back"})
    section = guard_section(trainer, L.LightningModule())
    assert section.lead == "31 steps skipped, 1 rolled back in 0 steps"
    assert section.numbers == {"guard/skipped": 31.0, "guard/rollbacks": 1.0}
    assert section.columns == ["step", "decision", "quantity", "value", "cause"]
    assert section.rows[-1] == [3, "rolled back", None, None, None]
    assert section.rows[-2][3] == "nan"
    assert len(section.rows) == 20
    assert section.notes == ["the last 20 of 32 events; events.jsonl has all"]
    assert "31 steps skipped" in str(section)


@pytest.mark.parametrize("losses", [(2.0, 1.0, 0.5), (2.0, -1.0, 0.0), ()])
def test_draws_any_losses(losses):
    events = guarded(SPIKE, NAN, {"step": 3, "decision": "gave up"}).callbacks[0].log.events
    figure = guard_timeline(range(len(losses)), losses, events)
    figure.canvas.draw() if hasattr(figure.canvas, "draw") else None
    axes = figure.axes[0]
    assert axes.get_yscale() == ("log" if losses and min(losses) > 0 else "linear")
    assert [text.get_text() for text in axes.get_legend().get_texts()][-2:] == [
        "skipped",
        "gave up",
    ]


def test_the_line_is_broken_where_the_run_went_back():
    figure = guard_timeline([0, 1, 2, 1, 2], [5.0, 4.0, 3.0, 2.0, 1.0], [])
    drawn = figure.axes[0].lines[0].get_ydata()
    assert [math.isnan(value) for value in drawn] == [False, False, False, True, False, False]


def test_words():
    dropped = [{"decision": "dropped"}] * 2
    assert counted(dropped) == "2 micro-batches dropped"
    assert counted([*dropped, {"decision": "gave up"}]) == "2 micro-batches dropped, gave up"


def test_nothing_to_draw_is_refused():
    with pytest.raises(DataError, match="as many steps as losses"):
        guard_timeline([], [], [])
    with pytest.raises(DataError, match="as many steps as losses"):
        guard_timeline([1], [], [SPIKE])
