"""summary.json and predictions.parquet: what they hold, and that they are never half there."""

import json
import math
import warnings
from pathlib import Path

import pandas
import pytest
import torch

from stablelightning.errors import DataError, OutputError, StableLightningWarning
from stablelightning.report.summary import (
    build_summary,
    most_uncertain_rows,
    ood_auroc,
    write_predictions,
    write_summary,
)
from tests.report.rows import classification_rows, regression_rows


def test_every_score_of_a_classifier_on_every_set() -> None:
    rows = classification_rows()
    far = classification_rows(seed=1) | {"epistemic": torch.full((30,), 9.0)}
    areas = ood_auroc(rows, {"far": far, "same": rows})
    scores = ("max_softmax", "max_softmax_mc", "mutual_information", "predictive_entropy")
    assert list(areas) == [
        f"ood/{name}/auroc_{score}" for name in ("far", "same") for score in scores
    ]
    assert areas["ood/far/auroc_mutual_information"] == 1.0
    assert all(areas[f"ood/same/auroc_{score}"] == pytest.approx(0.5) for score in scores)


def test_max_softmax_is_of_the_plain_pass_and_less_confidence_scores_higher() -> None:
    rows = classification_rows()
    unsure = classification_rows() | {"deterministic": torch.full((30, 3), 1 / 3)}
    areas = ood_auroc(rows, {"unsure": unsure})
    assert areas["ood/unsure/auroc_max_softmax"] == 1.0
    assert areas["ood/unsure/auroc_max_softmax_mc"] == pytest.approx(0.5)


def test_a_regression_scores_by_its_variances_however_large() -> None:
    rows = regression_rows()
    far = regression_rows() | {"total": rows["total"] * 1000, "epistemic": rows["epistemic"]}
    areas = ood_auroc(rows, {"far": far})
    assert areas == {"ood/far/auroc_epistemic_variance": 0.5, "ood/far/auroc_total_variance": 1.0}


def test_several_labels_each_have_no_softmax() -> None:
    rows = {
        "target": torch.zeros(4, 2),
        "mean": torch.rand(4, 2),
        "total": torch.rand(4, 2),
        "epistemic": torch.rand(4, 2),
    }
    areas = ood_auroc(rows, {"same": rows})
    assert set(areas) == {"ood/same/auroc_mutual_information", "ood/same/auroc_predictive_entropy"}


def test_a_summary_is_sorted_and_holds_plain_floats() -> None:
    summary = build_summary({"b/x": torch.tensor(2), "a/x": 1}, {"b/x": 3.5})
    assert list(summary.items()) == [("a/x", 1.0), ("b/x", 3.5)]
    assert all(type(value) is float for value in summary.values())


def test_what_is_not_finite_becomes_null_and_is_named() -> None:
    with pytest.warns(StableLightningWarning, match=r"a/nan is nan, b/inf is inf.* null"):
        summary = build_summary({"a/nan": math.nan, "b/inf": torch.tensor(math.inf), "c/x": 1.0})
    assert summary == {"a/nan": None, "b/inf": None, "c/x": 1.0}


def test_finite_numbers_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_summary({"a/x": 0.0})


@pytest.mark.parametrize("value", ["text", torch.zeros(2), [1.0]])
def test_a_value_that_is_not_one_number_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"one number per key, got .* for 'a/x'"):
        build_summary({"a/x": value})


def test_the_file_is_json_with_null(tmp_path: Path) -> None:
    path = write_summary(tmp_path / "new", {"b/x": None, "a/x": 0.1})
    assert json.loads(path.read_text()) == {"a/x": 0.1, "b/x": None}
    assert path.read_text().index("a/x") < path.read_text().index("b/x")
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=r"summary\.json must be written"):
        write_summary(tmp_path / "taken", {})
    with pytest.raises(OutputError, match=r"predictions\.parquet must be written"):
        write_predictions(tmp_path / "taken", classification_rows())


def test_predictions_of_a_classifier(tmp_path: Path) -> None:
    rows = classification_rows(5)
    shuffled = {key: value[torch.tensor([3, 1, 4, 0, 2])] for key, value in rows.items()}
    frame = pandas.read_parquet(write_predictions(tmp_path, shuffled))
    uncertainties = ["total", "aleatoric", "epistemic", "variation_ratio"]
    assert list(frame) == [
        "index",
        "target",
        "prediction",
        *(f"mean_{i}" for i in range(3)),
        *uncertainties,
        *(f"deterministic_{i}" for i in range(3)),
    ]
    assert frame["index"].tolist() == [0, 1, 2, 3, 4]
    assert frame["prediction"].tolist() == rows["mean"].argmax(1).tolist()
    assert frame["epistemic"].tolist() == rows["epistemic"].tolist()


def test_predictions_of_a_regression_and_of_half_precision(tmp_path: Path) -> None:
    rows = {key: value.bfloat16() for key, value in regression_rows(4).items() if key != "index"}
    frame = pandas.read_parquet(write_predictions(tmp_path, rows, name="half.parquet"))
    assert list(frame) == ["target", "mean", "total", "aleatoric", "epistemic", "deterministic"]
    assert frame["mean"].tolist() == rows["mean"].float().tolist()


def test_predictions_name_their_files_and_classes(tmp_path: Path) -> None:
    rows = {key: value.flip(0) for key, value in classification_rows(5).items()}
    files = [f"photo {number}.jpg" for number in range(6)]
    path = write_predictions(tmp_path, rows, files=files, class_names=["cat", "dog", "emu"])
    frame = pandas.read_parquet(path)
    assert list(frame)[:2] == ["index", "file"]
    assert frame["file"].tolist() == files[:5]
    names = dict(enumerate(["cat", "dog", "emu"]))
    assert frame["prediction_name"].tolist() == frame["prediction"].map(names).tolist()


def test_dense_predictions_are_lists(tmp_path: Path) -> None:
    rows = {"index": torch.arange(2), "mean": torch.rand(2, 3, 4, 4), "total": torch.rand(2, 4, 4)}
    frame = pandas.read_parquet(write_predictions(tmp_path, rows))
    assert frame["mean"][1].tolist() == rows["mean"][1].flatten().tolist()
    assert len(frame["total"][0]) == 16


def test_columns_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"same number of rows.*'index': 2, 'mean': 3"):
        write_predictions(tmp_path, {"index": torch.arange(2), "mean": torch.rand(3)})
    assert not list(tmp_path.iterdir())


def test_the_least_certain_rows_come_first_with_names() -> None:
    rows = classification_rows()
    columns, table = most_uncertain_rows(rows, count=4, class_names=["a", "b", "c"])
    assert columns[:4] == ["index", "target", "prediction", "confidence"]
    expected = rows["epistemic"].argsort(descending=True, stable=True)[:4]
    assert [row[0] for row in table] == expected.tolist()
    assert table[0][2] == "abc"[int(rows["mean"][expected[0]].argmax())]
    assert all(isinstance(value, int | float | str) for row in table for value in row)


def test_a_regression_has_its_mean_as_prediction() -> None:
    columns, table = most_uncertain_rows(regression_rows(), by="total", count=1000)
    assert columns == [
        "index",
        "target",
        "prediction",
        "total",
        "aleatoric",
        "epistemic",
        "deterministic",
    ]
    assert len(table) == 30


def test_an_unknown_uncertainty_is_refused() -> None:
    with pytest.raises(DataError, match=r"sorted by one of .*epistemic.*, got 'entropy'"):
        most_uncertain_rows(classification_rows(), by="entropy")
