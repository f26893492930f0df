"""The figures show the numbers they are given; each is labelled and says what is seen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

from stablelightning.errors import DataError, OutputError, RecipeError
from stablelightning.functional.intervals import gaussian_probability_below
from stablelightning.model.abstain import Thresholds
from stablelightning.report.decomposition import decomposition_scatter
from stablelightning.report.plots import (
    interval_calibration,
    interval_plot,
    most_uncertain_grid,
    ood_histogram,
    reliability_diagram,
    save_figure,
)
from stablelightning.report.quantiles import quantile_calibration
from stablelightning.report.selective import risk_coverage
from tests.report.rows import classification_rows, regression_rows


def reliability() -> Figure:
    rows = classification_rows(200)
    both = {"one pass": rows["deterministic"], "MC dropout": rows["mean"]}
    return reliability_diagram(both, rows["target"])


def histogram() -> Figure:
    rows, far = classification_rows(), classification_rows(40, seed=1)
    return ood_histogram(
        rows["epistemic"], {"far_away": far["epistemic"] + 0.1}, label="mutual information (nats)"
    )


def grid() -> Figure:
    rows = classification_rows()
    images = torch.rand(30, 1, 8, 8)
    return most_uncertain_grid(images, rows["mean"], rows["epistemic"], rows["target"])


def intervals() -> Figure:
    rows = regression_rows()
    return interval_plot(rows["mean"], rows["total"].sqrt(), rows["target"], label="price (EUR)")


def coverage() -> Figure:
    rows = regression_rows()
    std = rows["total"].sqrt()
    return interval_calibration(
        {"one pass": rows["mean"], "MC dropout": rows["mean"]},
        {"one pass": std / 3, "MC dropout": std},
        rows["target"],
    )


def selection() -> Figure:
    rows = classification_rows()
    wrong = rows["mean"].argmax(1) != rows["target"]
    scores = {"one pass": 1 - rows["deterministic"].amax(1), "samples: entropy": rows["total"]}
    answered = rows["total"] < rows["total"].median()
    return risk_coverage(scores, dict.fromkeys(scores, wrong), answered=answered)


def parts() -> Figure:
    rows = classification_rows()
    wrong = rows["mean"].argmax(1) != rows["target"]
    thresholds = Thresholds(float(rows["total"].median()), float(rows["epistemic"].quantile(0.9)))
    return decomposition_scatter(rows["aleatoric"], rows["epistemic"], wrong, thresholds=thresholds)


def quantiles() -> Figure:
    rows = regression_rows()
    below = gaussian_probability_below(rows["mean"], rows["total"], rows["target"])
    return quantile_calibration({"one pass": below / 2, "mean of the samples": below})


FIGURES = [reliability, histogram, grid, intervals, coverage, selection, parts, quantiles]
LABELLED = [reliability, histogram, intervals, coverage, selection, parts, quantiles]


@pytest.mark.parametrize("draw", FIGURES)
def test_every_figure_says_what_is_seen_and_leaves_pyplot_alone(
    draw: Callable[[], Figure], tmp_path: Path
) -> None:
    import matplotlib.pyplot as plt

    figure = draw()
    assert len(figure.get_suptitle().split()) >= 5
    assert plt.get_fignums() == []
    with Image.open(save_figure(figure, tmp_path / "figure.png")) as picture:
        assert picture.size == tuple((figure.get_size_inches() * 150).astype(int))


@pytest.mark.parametrize("draw", LABELLED)
def test_every_axis_is_labelled(draw: Callable[[], Figure]) -> None:
    figure = draw()
    assert figure.axes[-1].get_xlabel()
    assert all(axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("draw", FIGURES)
def test_titles_and_legends_lie_within_the_figure(draw: Callable[[], Figure]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw()
    FigureCanvasAgg(figure).draw()
    parts = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    for part in (*parts, *figure.texts):
        box = part.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def legend_texts(figure: Figure, place: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[place].get_legend().get_texts()]


def test_reliability_points_are_the_means_of_their_bins() -> None:
    probabilities = [[0.95, 0.05], [0.91, 0.09], [0.28, 0.72], [0.25, 0.75]]
    figure = reliability_diagram(probabilities, [0, 1, 1, 1], bins=10)
    points = figure.axes[0].lines[1].get_xydata()
    assert points == pytest.approx(np.array([[0.735, 1.0], [0.93, 0.5]]))
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert heights == [0] * 7 + [2, 0, 2]


def test_reliability_error_is_that_of_torchmetrics() -> None:
    rows = classification_rows(200)
    error = multiclass_calibration_error(rows["mean"], rows["target"], num_classes=3, n_bins=10)
    figure = reliability_diagram({"MC dropout": rows["mean"]}, rows["target"])
    assert legend_texts(figure) == [f"MC dropout, ECE {error:.3f}"]


def test_reliability_of_one_probability_and_of_several_labels() -> None:
    one = reliability_diagram([0.9, 0.2, 0.6], [1, 0, 0])
    both = reliability_diagram([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]], [1, 0, 0])
    assert one.axes[0].lines[1].get_xydata() == pytest.approx(both.axes[0].lines[1].get_xydata())
    labels = reliability_diagram([[0.9, 0.2], [0.6, 0.6]], [[1, 0], [0, 1]])
    assert "over 4 predictions" in labels.get_suptitle().replace("\n", " ")


def test_reliability_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="same rows, at least one; got 2 and 3"):
        reliability_diagram(np.eye(2), [0, 1, 1])
    with pytest.raises(DataError, match=r"got \(2, 3, 4\)"):
        reliability_diagram(np.ones((2, 3, 4)), [0, 1])
    with pytest.raises(DataError, match="got 0 and 0"):
        reliability_diagram(np.empty((0, 3)), [])


def test_histogram_shares_sum_to_a_hundred_and_the_legend_tells_the_auroc() -> None:
    figure = ood_histogram([0.1, 0.2, 0.3], {"far_away": [0.25, 0.9]}, label="entropy (nats)")
    assert legend_texts(figure) == ["test set (3)", "far away (2), AUROC 0.83"]
    known = figure.axes[0].containers[0]
    assert sum(bar.get_height() for bar in known) == pytest.approx(100)
    assert figure.axes[0].get_xlabel() == "entropy (nats)"
    assert figure.get_suptitle().endswith("far away fairly well")


def test_histogram_of_equal_scores_and_of_no_unknown_set() -> None:
    assert legend_texts(ood_histogram([0.0, 0.0], {"same": [0.0]}, label="x"))[1].endswith("0.50")
    assert legend_texts(ood_histogram([0.1, 0.2], {}, label="x")) == ["test set (2)"]


def test_histogram_refuses_scores_that_are_not_finite() -> None:
    with pytest.raises(DataError, match="'far' has 2 scores, 1 of them not finite"):
        ood_histogram([0.1], {"far": [0.1, float("nan")]}, label="x")
    with pytest.raises(DataError, match="'test set' has 0 scores"):
        ood_histogram([], {"far": [0.1]}, label="x")


def test_the_grid_shows_the_least_certain_first_and_marks_what_is_misread() -> None:
    images = np.arange(12)[:, None, None] * np.ones((12, 4, 4))
    images[:, 0, 0] += 1
    probabilities = np.tile([0.7, 0.3], (12, 1))
    target = np.array([0] * 11 + [1])
    figure = most_uncertain_grid(
        images, probabilities, np.arange(12) / 10, target, class_names=["cat", "dog"]
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["said cat (70 %), is dog"] + ["said cat (70 %), is cat"] * 8
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["1.10 nats", "1.00 nats"]
    assert figure.get_suptitle().startswith("One of the nine inputs")
    assert " is misread" in figure.get_suptitle().replace("\n", " ")
    marks = {axes.spines["left"].get_edgecolor() for axes in figure.axes}
    assert len(marks) == 2
    assert figure.axes[0].images[0].get_array()[0, 0] == 1.0


def test_long_names_of_classes_do_not_run_into_each_other() -> None:
    names = ["triangle", "hermit thrush of the western mountains"]
    figure = most_uncertain_grid(
        np.random.default_rng(0).random((9, 4, 4)),
        np.tile([0.3, 0.7], (9, 1)),
        np.arange(9) / 10,
        np.ones(9),
        class_names=names,
    )
    assert figure.axes[0].get_title() == "said hermit thru… (70 %),\nis hermit thru…"


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 64), (5, 1, 8, 8), (5, 3, 8, 8)])
def test_the_grid_takes_images_of_these_shapes_and_hides_empty_cells(shape: tuple[int]) -> None:
    figure = most_uncertain_grid(torch.rand(shape), np.eye(5), np.ones(5), range(5))
    assert sum(axes.get_visible() for axes in figure.axes) == 5
    assert figure.get_suptitle().startswith("None of the five inputs")


def test_the_grid_refuses_what_is_no_image_and_rows_that_differ() -> None:
    with pytest.raises(DataError, match=r"got \(5, 63\)"):
        most_uncertain_grid(np.ones((5, 63)), np.eye(5), np.ones(5), range(5))
    with pytest.raises(DataError, match="got 5, 5, 4 and 5"):
        most_uncertain_grid(np.ones((5, 8, 8)), np.eye(5), np.ones(4), range(5))


def test_intervals_are_sorted_and_count_what_they_hold() -> None:
    figure = interval_plot([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [3.5, 9.0, 2.0], level=0.68)
    mean, inside, outside = (line.get_ydata().tolist() for line in figure.axes[0].lines)
    assert mean == [1.0, 2.0, 3.0]
    assert inside == [2.0, 3.5]
    assert outside == [9.0]
    assert figure.get_suptitle() == "The 68 % intervals hold 67 % of 3 targets"


def test_many_rows_are_thinned_and_all_are_counted() -> None:
    figure = interval_plot(np.arange(5000.0), np.ones(5000), np.arange(5000.0))
    assert len(figure.axes[0].lines[0].get_ydata()) == 200
    assert figure.axes[0].lines[0].get_ydata()[[0, -1]].tolist() == [0.0, 4999.0]
    assert "of 5,000 targets" in figure.get_suptitle()


def test_true_intervals_follow_the_diagonal() -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    figure = interval_calibration(torch.zeros(20_000), torch.ones(20_000), noise)
    nominal, observed = figure.axes[0].lines[1].get_xydata().T
    assert observed == pytest.approx(nominal, abs=0.015)
    assert "chance alone" in figure.get_suptitle().replace("\n", " ")


@pytest.mark.parametrize(("factor", "word"), [(0.3, "too narrow"), (3.0, "too wide")])
def test_false_intervals_are_called_so(factor: float, word: str) -> None:
    noise = torch.randn(500, generator=torch.Generator().manual_seed(0))
    figure = interval_calibration(torch.zeros(500), torch.full((500,), factor), noise)
    assert word in figure.get_suptitle().replace("\n", " ")


def test_intervals_refuse_what_does_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"level must be in \(0, 1\), got 1"):
        interval_plot([1.0], [1.0], [1.0], level=1)
    with pytest.raises(DataError, match=r"must be >= 0, got -1\.0"):
        interval_plot([1.0], [-1.0], [1.0])
    with pytest.raises(DataError, match=r"must be >= 0, got nan"):
        interval_plot([1.0], [float("nan")], [1.0])
    with pytest.raises(DataError, match="got 2, 1 and 1"):
        interval_plot([1.0, 2.0], [1.0], [1.0])
    with pytest.raises(DataError, match=r"same names, got \['a'\] and \['b'\]"):
        interval_calibration({"a": [1.0]}, {"b": [1.0]}, [1.0])


def test_a_figure_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=r"figure\.png must be written"):
        save_figure(intervals(), tmp_path / "taken" / "figure.png")
