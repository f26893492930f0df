"""A section reads the same on a terminal, in a pipe and in JSON."""

import io
import json

from stablelightning.report.section import Section, print_section, sentence
from tests.report.test_diagnosis import Terminal

SPEED = Section(
    "speed",
    "Speed",
    "twice as slow",
    ["batch", "ms"],
    [[1, 0.51234], [1024, None]],
    notes=["one thread"],
    numbers={"latency/ms": 0.5},
)


def test_sentences():
    assert sentence("body.3 is dead") == "body.3 is dead."
    assert sentence("") == ""


def test_plain_text_is_aligned():
    file = io.StringIO()
    print_section(SPEED, file=file)
    assert file.getvalue().splitlines() == [
        "Speed",
        "Twice as slow.",
        "",
        "batch  ms",
        "1      0.5123",
        "1,024  -",
        "Note: One thread.",
    ]


def test_a_terminal_says_the_same():
    file = Terminal()
    print_section(SPEED, file=file)
    for word in ("Speed", "Twice as slow.", "batch", "0.5123", "1,024", "Note: One thread."):
        assert word in file.getvalue()


def test_json_holds_everything_but_the_picture():
    assert json.loads(json.dumps(SPEED.to_dict()))["rows"] == SPEED.rows
