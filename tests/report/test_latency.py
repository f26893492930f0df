"""The picture and the section of a latency report."""

import pytest

from stablelightning.errors import DataError
from stablelightning.model.folding import FoldedNorm, FoldReport, LeftNorm
from stablelightning.model.latency import Latency, LatencyReport
from stablelightning.report.latency import latency_figure, latency_section

FOLDING = FoldReport([FoldedNorm("a", "b", True)], [LeftNorm("c", "why"), LeftNorm("d", "why")])


def report(*rows: Latency, folding: FoldReport | None = FOLDING) -> LatencyReport:
    return LatencyReport(list(rows), 20, 9, "cpu, 1 thread", folding)


FULL = report(Latency(1, 0.004, 0.002, 0.02, 0.01), Latency(8, 0.012, 0.008, 0.05, 0.04))


def test_lines_are_milliseconds_a_row():
    one, sampled = latency_figure(FULL).axes
    assert [line.get_ydata().tolist() for line in one.lines] == [[4.0, 1.5], [2.0, 1.0]]
    assert sampled.lines[0].get_ydata().tolist() == [20.0, 6.25]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (FULL.rows, "1.75 times as fast"),
        ([Latency(1, 0.004, 0.004)], "no difference here"),
        ([Latency(1, 0.004)], "no batch norm to fold"),
    ],
)
def test_the_sentence_says_what_was_gained(rows, words):
    figure = latency_figure(report(*rows))
    assert words in figure.get_suptitle().replace("\n", " ")


def test_nothing_measured_is_no_picture():
    with pytest.raises(DataError, match="needs a measurement"):
        latency_figure(report())


def test_the_section_has_the_table_the_reasons_and_the_smallest_batch_as_numbers():
    section = latency_section(FULL)
    assert len(section.rows) == 2
    assert section.figure is not None
    assert "2 of 3 batch norms cannot be folded" in section.notes
    assert "c and 1 more: why" in section.notes
    assert set(section.numbers) == {
        "latency/one_pass_ms/1",
        "latency/one_pass_folded_ms/1",
        "latency/sampled_ms/1",
        "latency/sampled_folded_ms/1",
    }


def test_one_batch_size_needs_no_picture():
    assert latency_section(report(Latency(1, 0.004))).figure is None
