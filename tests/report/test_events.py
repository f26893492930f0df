"""Events of a guarded run: what is written, kept, told and drawn."""

import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from stablelightning.errors import StableLightningWarning
from stablelightning.report import events as events_module
from stablelightning.report.events import (
    COLUMNS,
    FILE_NAME,
    MOST_EVENTS,
    EventLog,
    remedy,
    report_of_giving_up,
    run_folder,
)


def trainer_in(folder, **settings):
    settings = {"logger": False, "enable_checkpointing": False, **settings}
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def lines_of(folder):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (folder / FILE_NAME).read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_quiet_run_leaves_no_file(tmp_path):
    log = EventLog()
    log.keep_loss(0, 1.0)
    log.tell(trainer_in(tmp_path))
    assert not list(tmp_path.iterdir())


def test_each_event_is_one_line_of_strict_json(tmp_path):
    log, trainer = EventLog(), trainer_in(tmp_path)
    values = [math.nan, math.inf, -math.inf, torch.tensor(2.5), torch.tensor([1.0, math.nan]), None]
    for step, value in enumerate(values):
        log.write(trainer, {"step": step, "decision": "skipped", "value": value, "indices": (1, 2)})
    lines = lines_of(tmp_path)
    assert [line["value"] for line in lines] == ["nan", "inf", "-inf", 2.5, [1.0, "nan"], None]
    assert all(line["indices"] == [1, 2] and line["time"] for line in lines)
    assert [line["step"] for line in lines] == list(range(6))


def test_a_line_cut_short_by_a_crash_does_not_spoil_the_next(tmp_path):
    log, trainer = EventLog(), trainer_in(tmp_path)
    (tmp_path / FILE_NAME).write_text('{"step": 1')
    log.write(trainer, {"step": 2})
    assert json.loads((tmp_path / FILE_NAME).read_text().splitlines()[1])["step"] == 2


def test_a_folder_that_cannot_be_written_warns_once_and_trains_on(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    log, trainer = EventLog(), trainer_in(blocked)
    with pytest.warns(StableLightningWarning, match=r"events\.jsonl must be written to"):
        log.write(trainer, {"step": 1})
    log.write(trainer, {"step": 2})  # warnings are errors
    assert len(log.events) == 2


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"barebones": True}])
def test_nothing_is_written_where_nothing_shall_be_left(tmp_path, settings):
    trainer = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **settings)
    EventLog().write(trainer, {"step": 1})
    assert not list(tmp_path.iterdir())


def test_lies_in_the_loggers_folder_where_there_is_one(tmp_path):
    logger = CSVLogger(str(tmp_path), name="mine", version=3)
    assert run_folder(trainer_in(tmp_path, logger=logger)) == tmp_path / "mine" / "version_3"
    assert run_folder(trainer_in(tmp_path)) == tmp_path
    assert run_folder(trainer_in("s3://bucket/run")) is None


def test_memory_is_bounded_and_everything_is_counted(tmp_path):
    log, trainer = EventLog(), trainer_in(tmp_path, fast_dev_run=True)
    for step in range(MOST_EVENTS + 50):
        log.write(trainer, {"step": step, "decision": "skipped"})
    for step in range(100_000):
        log.keep_loss(step, 1.0)
    assert len(log.events) == MOST_EVENTS
    assert log.events[-1]["step"] == MOST_EVENTS + 49
    assert log.counts["skipped"] == MOST_EVENTS + 50
    assert 256 <= len(log.losses) <= 513
    assert log.steps[0] == 0
    assert log.steps[-1] > 99_000


def test_goes_on_from_a_checkpoint_that_holds_plain_types(tmp_path):
    log, trainer = EventLog(), trainer_in(tmp_path)
    for step in range(700):
        log.keep_loss(step, float(step) if step % 7 else math.nan)
    log.write(trainer, {"step": 9, "value": math.nan, "indices": torch.tensor([3])})
    torch.save(log.state_dict(), tmp_path / "state.pt")
    other = EventLog()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for which in (log, other):
        which.write(trainer, {"step": 10, "decision": "rolled back"})
        for step in range(700, 900):
            which.keep_loss(step, 2.0)
    assert other.state_dict() == log.state_dict()


def test_the_whole_table_is_sent_ever_more_rarely(tmp_path, monkeypatch):
    tables = []
    monkeypatch.setattr(events_module, "log_table", lambda *given: tables.append(given))
    log, trainer = EventLog(), trainer_in(tmp_path)
    for step in range(10):
        log.write(trainer, {"step": step, "indices": [1, 2]})
    assert [len(rows) for *_, rows in tables] == [1, 2, 4, 8]
    log.tell(trainer)
    log.tell(trainer)  # nothing new
    assert [len(rows) for *_, rows in tables] == [1, 2, 4, 8, 10]
    _, name, columns, rows = tables[-1]
    assert (name, columns) == ("guard/events", COLUMNS)
    assert rows[3][columns.index("step")] == 3
    assert rows[3][columns.index("indices")] == "1, 2"


def test_the_report_names_the_cause_the_rows_and_the_remedy():
    skipped = {"decision": "skipped", "cause": "poisoned batch", "indices": list(range(20))}
    events = [{"step": step, **skipped} for step in range(12)]
    events += [{"step": 12, "decision": "gave up", "cause": "learning rate too high"}]
    text = report_of_giving_up(events)
    assert text.startswith("12 steps skipped, 1 gave up, most of them for: poisoned batch.")
    assert "(5 before these)" in text
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7, ... of the dataset" in text
    assert text.endswith(f"To go on: {remedy('poisoned batch')}")


def test_the_report_of_nothing_is_still_one():
    assert report_of_giving_up([]).startswith("nothing was decided.")
