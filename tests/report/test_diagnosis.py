"""Figure, terminal and page tell the same findings; nothing of a model's names can break them."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from stablelightning.errors import OutputError
from stablelightning.report.diagnosis import (
    diagnosis_figure,
    findings_rows,
    layer_rows,
    print_diagnosis,
    rich_diagnosis,
    short_number,
    summary_line,
)
from stablelightning.report.page import diagnosis_page, write_diagnosis
from stablelightning.report.section import Section
from stablelightning.report.style import new_figure
from tests.report.diagnoses import changed, cured, diagnosis, found, sick


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(*args, **kwargs) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(rich_diagnosis(*args, **kwargs))
    return console.file.getvalue()


# ---- the figure -----------------------------------------------------------------------------


def test_the_figure_lists_the_findings_worst_first():
    figure = diagnosis_figure(sick())
    texts = [text.get_text() for part in figure.subfigs for text in part.texts]
    codes = [finding.code for finding in sick().findings]
    assert [text for text in texts if text in codes] == codes
    assert "1 error, 1 warning, 1 note" in texts
    assert "error at network.body.0" in texts


def test_the_figure_says_what_was_done():
    texts = [text.get_text() for part in diagnosis_figure(cured()).subfigs for text in part.texts]
    assert "50 layers were initialized anew." in " ".join(texts)
    assert "done" in texts
    assert "left as it was" in texts


def test_more_findings_than_fit_are_counted():
    many = diagnosis(5, findings=[found(f"code-{i}", "info", f"m{i}") for i in range(11)])
    texts = [text.get_text() for part in diagnosis_figure(many).subfigs for text in part.texts]
    assert "3 more on the page" in texts
    assert "code-7" in texts
    assert "code-8" not in texts


def test_text_stays_within_the_figure():
    long = found("code", "error", "m" * 80, message="word " * 200, remedy="then " * 100)
    figure = diagnosis_figure(diagnosis(5, findings=[long] * 8))
    figure.draw_without_rendering()
    width, _ = figure.get_size_inches() * figure.dpi
    for part in figure.subfigs:
        for text in part.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= width
            assert box.y0 >= 0


# ---- the terminal ---------------------------------------------------------------------------


def test_the_terminal_shows_codes_remedies_and_bars():
    told = printed(sick(), title="The doctor")
    for word in ("The doctor", "vanishing-gradient", "network.body.0", "error", "Do something"):
        assert word in told
    signal, gradient = (line for line in told.splitlines() if "▁" in line)
    bars = re.sub(r"[^▁▂▃▄▅▆▇█]", "", signal)
    assert bars[0] == "█"
    assert bars[-1] == "▁"
    assert len(bars) == 50
    assert re.sub(r"[^▁▂▃▄▅▆▇█]", "", gradient) == bars[::-1]


def test_the_terminal_shows_before_and_after_and_what_was_done():
    told = printed(cured())
    assert "std of the output, before" in told
    assert "✖ error   vanishing-gradient at " in told.split("What was done")[0]
    assert "std of the output, after" in told
    assert "done  initialize" in told
    assert "left  add-skips" in told
    assert "1 note; before the cures, 1 error, 1 warning, 1 note" in told


def test_two_hundred_layers_fit_on_a_line():
    assert max(map(len, printed(sick(200)).splitlines())) <= 110


def test_brackets_in_names_are_no_markup():
    odd = diagnosis(3, findings=[found("code", "error", "a[red]b[/red]", message="[bold]x[/q]")])
    assert "a[red]b[/red]" in printed(odd)
    assert "[bold]x[/q]" in printed(odd)


def test_colours_on_terminals_plain_text_elsewhere():
    terminal, pipe = Terminal(), io.StringIO()
    print_diagnosis(sick(), title="T", file=terminal)
    print_diagnosis(sick(), title="T", file=pipe)
    assert "\x1b[" in terminal.getvalue()
    assert pipe.getvalue() == f"T\n{sick()}\n"


def test_values_that_are_not_finite_are_shown():
    broken = diagnosis(3)
    changed(broken, 1, std=math.nan)
    changed(broken, 2, std=0.0)
    assert "!" in printed(broken)


# ---- the page -------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself():
    page = diagnosis_page(cured(), title="Digits")
    assert page.count("<svg") == 1
    own = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)  # names, which nobody fetches
    assert not re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import|https?://""", own)


def test_the_page_tells_what_is_left_and_what_is_gone():
    page = diagnosis_page(cured())
    left, gone = page.split("Found before the cures, and gone")
    assert "not-zero-centred" in left
    assert "vanishing-gradient" not in left
    assert "vanishing-gradient" in gone
    assert "not-zero-centred" not in gone
    assert "50 layers were initialized anew." in page


def test_the_page_has_every_layer_and_the_evidence():
    page = diagnosis_page(sick(7))
    assert page.count("<tr>") == 8
    assert "rms = 3.2e-12" in page


def test_names_and_messages_are_escaped():
    evil = found("code", "error", "<script>alert(1)</script>", message="a < b & c")
    page = diagnosis_page(diagnosis(3, findings=[evil]), title="<b>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "A &lt; b &amp; c." in page or "a &lt; b &amp; c." in page


def test_equal_diagnoses_make_equal_pages():
    assert diagnosis_page(sick()) == diagnosis_page(sick())


# ---- the files ------------------------------------------------------------------------------


def test_three_files_are_written(tmp_path):
    paths = write_diagnosis(cured(), tmp_path / "new")
    assert {path.name for path in paths} == {"doctor.html", "doctor.json", "doctor.png"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in paths}
    record = json.loads((tmp_path / "new" / "doctor.json").read_text())
    assert record["before"]["findings"][0]["code"] == "vanishing-gradient"
    assert record["treatments"][0]["cure"] == "initialize"


def test_numbers_that_json_lacks_are_words(tmp_path):
    broken = diagnosis(3)
    changed(broken, 1, std=math.nan)
    changed(broken, 2, std=-math.inf)
    write_diagnosis(broken, tmp_path)
    layers = json.loads((tmp_path / "doctor.json").read_text())["layers"]
    assert [layer["std"] for layer in layers] == [1.0, "nan", "-inf"]


def test_without_layers_there_is_no_figure(tmp_path):
    wrong = found("loss-expects-logits", "error")
    paths = write_diagnosis(diagnosis(0, findings=[wrong]), tmp_path)
    assert {path.name for path in paths} == {"doctor.html", "doctor.json"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"doctor\.html"):
        write_diagnosis(sick(), tmp_path / "file")


# ---- rows for tables ----------------------------------------------------------------------------


def test_a_table_holds_what_is_left_and_what_was_cured():
    columns, rows = findings_rows(cured())
    state, code = columns.index("state"), columns.index("finding")
    assert [(row[state], row[code]) for row in rows] == [
        ("left", "not-zero-centred"),
        ("cured", "vanishing-gradient"),
        ("cured", "plain-depth"),
    ]
    _, rows = findings_rows(sick())
    assert {row[state] for row in rows} == {"found"}
    assert {len(row) for row in rows} == {len(columns)}


def test_layers_stand_beside_what_they_were():
    now = cured(3)
    columns, rows = layer_rows(now)
    assert columns[-2:] == ["std before", "gradient rms before"]
    assert [row[-2] for row in rows] == [1.0, 0.5, 0.25]
    now.before.layers = now.before.layers[1:]
    assert layer_rows(now)[1][0][-2:] == [None, None]
    assert "std before" not in layer_rows(sick())[0]


def test_notes_are_told():
    odd = diagnosis(3, notes=["the forward draws <random> numbers"])
    assert "Note: The forward draws <random> numbers." in printed(odd)
    assert "The forward draws &lt;random&gt; numbers." in diagnosis_page(odd)


# ---- words ----------------------------------------------------------------------------------


def test_words():
    assert summary_line(diagnosis()) == "no findings"
    assert short_number(math.inf) == "inf"
    assert short_number(12345.0) == "1.2e+04"


# ---- sections of other concerns -------------------------------------------------------------


def test_a_section_stands_on_the_page_and_in_the_file(tmp_path):
    said = Section("speed", "Speed <of> it", "half as fast", ["n", "ms"], [[1, math.nan]])
    said.figure = new_figure(2, 1)
    write_diagnosis(sick(), tmp_path, sections=[said])
    page = (tmp_path / "doctor.html").read_text()
    assert "Speed &lt;of&gt; it" in page
    assert "Half as fast." in page
    assert page.count("<svg") == 2
    (kept,) = json.loads((tmp_path / "doctor.json").read_text())["sections"]
    assert kept["rows"] == [[1, "nan"]]
