"""Which figures a run leaves, and that none takes the others along when it fails."""

from types import SimpleNamespace

import torch

from stablelightning.callbacks import AbstainWhenUnsure, EstimateUncertainty
from stablelightning.cli import figures
from stablelightning.cli.decide import decided_on, decisions
from stablelightning.cli.figures import Seen, figures_of
from stablelightning.cli.observe import ObserveUnknown
from stablelightning.model.abstain import Thresholds
from tests.report.rows import classification_rows, regression_rows


def drawn(seen: Seen) -> dict:
    return dict(figures_of(seen))


def decided(rows: dict, *, answered: torch.Tensor) -> dict:
    return {**rows, "answered": answered, "reason": torch.where(answered, 0, 2)}


def calibrated(rows: dict) -> dict:
    parts = {f"{name}_calibrated": rows[name] * 2 for name in ("total", "aleatoric", "epistemic")}
    return {**rows, **parts, "calibrated": rows["mean"]}


def text(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def test_rows_of_a_classifier():
    rows, far = classification_rows(), classification_rows(seed=1)
    made = drawn(Seen(rows, {"far": far}))
    assert list(made) == ["reliability", "risk_coverage", "decomposition", "out_of_distribution"]


def test_rows_of_a_regression():
    made = drawn(Seen(regression_rows()))
    assert list(made) == [
        "intervals",
        "interval_calibration",
        "quantile_calibration",
        "risk_coverage",
        "decomposition",
    ]


def test_rows_without_a_target_or_a_variance_have_fewer():
    rows = regression_rows()
    unlabelled = {name: value for name, value in rows.items() if name != "target"}
    assert drawn(Seen(unlabelled)) == {}
    sure = {**rows, **dict.fromkeys(("total", "aleatoric", "epistemic"), rows["total"] * 0)}
    assert list(drawn(Seen(sure))) == ["intervals", "interval_calibration"]


def test_what_was_calibrated_is_drawn_beside_the_samples():
    made = drawn(Seen(calibrated(regression_rows())))
    legend = made["quantile_calibration"].axes[0].get_legend().get_texts()
    assert [entry.get_text().partition(",")[0] for entry in legend[:2]] == [
        "mean of the samples",
        "calibrated",
    ]
    classes = drawn(Seen(calibrated(classification_rows())))
    assert len(classes["reliability"].axes[0].get_legend().get_texts()) == 3


def test_promised_intervals_replace_those_of_a_normal_distribution():
    rows = regression_rows()
    ends = {"lower": rows["target"] - 1, "upper": rows["target"] + 1}
    made = drawn(Seen({**rows, **ends}, level=0.8))
    assert text(made["intervals"]) == "The 80 % intervals hold 100 % of 30 targets"


def test_both_pictures_of_a_regression_mean_the_same_intervals():
    rows = regression_rows()
    ends = {"lower": rows["target"] + 1, "upper": rows["target"] + 2}  # which hold no target
    legend = drawn(Seen({**rows, **ends}, level=0.8))["decomposition"].axes[0].get_legend()
    said = [entry.get_text() for entry in legend.get_texts()]
    assert said == ["in its 80 % interval (0)", f"outside ({len(rows['target'])})"]


def test_decisions_show_in_the_figures():
    rows = classification_rows()
    rows = decided(rows, answered=rows["total"] < rows["total"].median())
    made = drawn(Seen(rows, thresholds=Thresholds(float(rows["total"].median()))))
    assert text(made["risk_coverage"]).startswith("Leaving out 53.3 % of the rows")
    assert len(made["decomposition"].axes[0].lines) == 2


def test_one_that_fails_is_told_in_words(monkeypatch):
    def breaks(seen):
        raise ValueError("no ink")

    monkeypatch.setitem(figures.FIGURES, "reliability", breaks)
    made = drawn(Seen(classification_rows()))
    assert made["reliability"] == "there is no figure reliability (no ink)"
    assert "decomposition" in made


def trainer_of(rows: dict, thresholds: Thresholds | None) -> SimpleNamespace:
    estimate, abstain = EstimateUncertainty(), AbstainWhenUnsure()
    estimate.all_rows = [rows]
    if thresholds is not None:
        abstain.calibrator = abstain.make_calibrator("classification")
        abstain.calibrator.thresholds = thresholds
    return SimpleNamespace(callbacks=[estimate, abstain])


def test_the_section_counts_every_reason():
    rows = classification_rows()
    rows = decided(rows, answered=torch.arange(30) < 24)
    wrong = rows["mean"].argmax(1) != rows["target"]
    trainer = trainer_of(rows, Thresholds(1.0, 0.5, coverage=0.8, risk=0.1, bound=0.2))
    section = decisions(trainer, None)
    assert section.rows[0] == ["answered", 24, 80.0, 100 * float(wrong[:24].double().mean())]
    assert section.rows[2][:3] == ["epistemic", 6, 20.0]
    assert section.rows[3] == ["out of distribution", 0, 0.0, None]
    assert section.rows[4][1] == 30
    assert section.lead.startswith("80 % of 30 test rows are answered; of the answers ")
    assert section.numbers["decide/epistemic"] == 0.2
    assert section.numbers["decide/threshold_total"] == 1
    assert len(section.notes) == 2


def test_the_section_tells_how_much_of_each_unknown_set_is_answered():
    rows = classification_rows()
    trainer = trainer_of(decided(rows, answered=torch.arange(30) < 24), Thresholds(1.0))
    unknown = ObserveUnknown(EstimateUncertainty())
    unknown.rows = {"far_away": {"answered": torch.tensor([True, False, False, False])}, "odd": {}}
    trainer.callbacks.append(unknown)
    section = decisions(trainer, None)
    assert section.rows[-1] == ["answered of far away", None, 25.0, None]
    assert section.numbers["ood/far_away/answered"] == 0.25


def test_the_section_of_a_regression_tells_its_error():
    rows = regression_rows()
    rows = decided(rows, answered=rows["total"] < rows["total"].median())
    error = (rows["mean"] - rows["target"])[rows["answered"]].double().square().mean().sqrt()
    section = decisions(trainer_of(rows, Thresholds(1.0)), None)
    assert f"with an RMSE of {float(error):.3g} instead of " in section.lead


def test_nobody_answered_is_said():
    rows = decided(classification_rows(), answered=torch.zeros(30, dtype=torch.bool))
    section = decisions(trainer_of(rows, Thresholds(0.0)), None)
    assert section.lead == "0 % of 30 test rows are answered"
    assert "no test row meets the thresholds" in section.notes[0]


def test_nothing_decided_is_no_section():
    assert decisions(trainer_of(classification_rows(), None), None) is None
    assert decided_on(trainer_of({}, None)) is None
    assert decisions(trainer_of(classification_rows(), Thresholds(1.0)), None) is None


def test_recalibrated_quantiles_are_drawn_and_not_a_gaussian_of_their_variance():
    rows = calibrated(regression_rows())
    even = (torch.arange(len(rows["target"])) + 0.5) / len(rows["target"])
    made = drawn(Seen({**rows, "below_calibrated": even}))
    legend = made["quantile_calibration"].axes[0].get_legend().get_texts()
    assert any(text.get_text().startswith("calibrated, error 0.00") for text in legend)
    assert "interval_calibration" in made


def test_thresholds_that_could_not_be_chosen_are_said():
    trainer = trainer_of(classification_rows(), None)
    trainer.callbacks[1].unfitted = "risk must be one that a threshold reaches"
    section = decisions(trainer, None)
    assert "no threshold could be chosen: risk must be one that" in section.lead
    assert str(section).startswith("Decisions")
