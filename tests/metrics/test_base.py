"""What all metrics share beyond the contract: bounds, constant memory, collections, devices."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from stablelightning import metrics
from stablelightning.errors import DataError
from stablelightning.metrics.base import RankMetric, UncertaintyMetric
from stablelightning.model.prediction import Prediction

SELECTIVE = [
    lambda **k: metrics.AURC(**k),
    lambda **k: metrics.ExcessAURC(**k),
    lambda **k: metrics.AUGRC(**k),
    lambda **k: metrics.RiskAtCoverage(0.5, **k),
    lambda **k: metrics.CoverageAtRisk(0.3, **k),
]
DETECTION = [
    lambda **k: metrics.OODAUROC(**k),
    lambda **k: metrics.OODAUPROut(**k),
    lambda **k: metrics.OODAUPRIn(**k),
    lambda **k: metrics.FalsePositiveRate(0.7, **k),
]

#: Scores so near to each other that a histogram takes some for equal.
near = st.integers(0, 12).map(lambda step: 1.0 + step * 3e-4)


def check_bounds(coarse: RankMetric, fine: RankMetric) -> None:
    low, high = coarse.bounds()
    for value in (coarse.compute(), fine.compute()):
        assert low - 1e-6 <= value <= high + 1e-6
    assert torch.equal(torch.stack(fine.bounds()), fine.compute().expand(2))


@settings(max_examples=60)
@given(st.lists(st.tuples(near, st.booleans()), min_size=1, max_size=25))
def test_bounds_of_selective_metrics_hold_the_exact_value(rows: list[tuple[float, bool]]) -> None:
    score, wrong = (torch.tensor(part) for part in zip(*rows, strict=True))
    p = torch.tensor([[0.9, 0.1]]).expand(len(rows), 2)
    for make in SELECTIVE:
        coarse, fine = make(), make(exact=True)
        for metric in (coarse, fine):
            metric.update(p, wrong.long(), score)
        check_bounds(coarse, fine)


@settings(max_examples=60)
@given(st.lists(st.tuples(near, st.booleans()), min_size=2, max_size=25))
def test_bounds_of_detection_hold_the_exact_value(rows: list[tuple[float, bool]]) -> None:
    score, out = (torch.tensor(part) for part in zip(*rows, strict=True))
    score, out = torch.cat([score, torch.ones(2)]), torch.cat([out, torch.tensor([True, False])])
    for make in DETECTION:
        coarse, fine = make(), make(exact=True)
        for metric in (coarse, fine):
            metric.update(score, out)
        check_bounds(coarse, fine)


@settings(max_examples=60)
@given(st.lists(st.tuples(near, st.booleans()), min_size=1, max_size=25), st.integers(1, 6))
def test_bounds_of_the_adaptive_error_hold_the_exact_value(
    rows: list[tuple[float, bool]], bins: int
) -> None:
    score, wrong = (torch.tensor(part) for part in zip(*rows, strict=True))
    confidence = 1 - score / 4
    p = torch.stack([confidence, 1 - confidence], 1)
    coarse = metrics.AdaptiveCalibrationError(bins=bins)
    fine = metrics.AdaptiveCalibrationError(bins=bins, exact=True)
    for metric in (coarse, fine):
        metric.update(p, wrong.long())
    check_bounds(coarse, fine)


def test_bounds_are_narrow_on_scores_as_they_are() -> None:
    score = torch.rand(20_000)
    metric = metrics.OODAUROC()
    metric.update(score, torch.rand(20_000) < score)
    low, high = metric.bounds()
    assert high - low < 1e-3


def test_memory_does_not_grow_unless_it_is_asked_to() -> None:
    def numbers(metric: UncertaintyMetric) -> int:
        states = [getattr(metric, name) for name in metric._defaults]
        return sum(s.numel() if isinstance(s, torch.Tensor) else sum(map(len, s)) for s in states)

    for exact in (False, True):
        metric = metrics.AURC(exact=exact)
        p, y = torch.randn(50, 3).softmax(1), torch.randint(3, (50,))
        metric.update(p, y)
        before = numbers(metric)
        metric.update(p, y)
        assert (numbers(metric) > before) is exact


def test_equal_sums_of_different_metrics_are_not_shared() -> None:
    # Sure and right: the Brier score and the likelihood are both 0 after the first batch.
    collection = MetricCollection([metrics.BrierScore(), metrics.NegativeLogLikelihood()])
    collection.update(torch.eye(3), torch.arange(3))
    collection.update(torch.full((1, 2), 0.5), torch.tensor([0]))
    values = collection.compute()
    assert values["BrierScore"].item() == pytest.approx(0.5 / 4)
    assert values["NegativeLogLikelihood"].item() == pytest.approx(0.6931 / 4, rel=1e-3)


def test_metrics_of_one_histogram_share_it() -> None:
    chosen = [metrics.AURC(), metrics.AUGRC(), metrics.ExcessAURC(), metrics.CoverageAtRisk(0.1)]
    collection = MetricCollection(chosen)
    p, y = torch.randn(60, 3).softmax(1), torch.randint(3, (60,))
    collection.update(p[:30], y[:30])
    collection.update(p[30:], y[30:])
    assert len(collection.compute_groups) == 1
    alone = metrics.AUGRC()
    alone.update(p, y)
    assert torch.equal(collection.compute()["AUGRC"], alone.compute())


def test_a_prediction_stands_for_its_probabilities() -> None:
    p, y = torch.randn(20, 3).softmax(1), torch.randint(3, (20,))
    zero = torch.zeros(20)
    prediction = Prediction("classification", p, zero, zero, zero, torch.zeros_like(p), 1, "loop")
    kinds = (metrics.BrierScore, metrics.NegativeLogLikelihood, metrics.AURC)
    for kind in (*kinds, metrics.AdaptiveCalibrationError):
        assert torch.equal(kind()(prediction, y), kind()(p, y))
    classwise = metrics.ClasswiseCalibrationError
    assert torch.equal(classwise(3)(prediction, y), classwise(3)(p, y))


def test_a_regression_has_no_probabilities() -> None:
    zero = torch.zeros(3)
    prediction = Prediction("regression", zero, zero, zero, zero, zero, 1, "loop")
    with pytest.raises(DataError, match="got a Prediction of regression"):
        metrics.BrierScore().update(prediction, zero.long())


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"made for num_classes=4, got probabilities of 3"):
        metrics.BrierDecomposition(4).update(torch.full((1, 3), 1 / 3), torch.tensor([0]))


def test_logits_are_refused_by_the_metrics_too() -> None:
    with pytest.raises(DataError, match="looks like logits"):
        metrics.NegativeLogLikelihood().update(torch.randn(8, 3) * 5, torch.zeros(8).long())


def test_where_there_is_no_double_the_states_stay_on_the_cpu() -> None:
    metric = metrics.BrierScore()
    metric.update(torch.eye(2), torch.tensor([0, 0]))
    moved = metric._apply(lambda _: SimpleNamespace(device=torch.device("mps")))
    assert moved is metric
    assert metric.brier_total.device.type == "cpu"
    assert metric.compute().item() == 1


def test_inputs_come_to_the_device_of_the_metric() -> None:
    metric = metrics.AURC().to("meta")
    p, y = torch.randn(5, 3).softmax(1), torch.randint(3, (5,))
    metric.update(p, y)
    assert metric.selective_histogram.device.type == "meta"


def test_deterministic_algorithms_are_enough() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        p, y = torch.randn(50, 3).softmax(1), torch.randint(3, (50,))
        for metric in (metrics.AURC(), metrics.BrierDecomposition(3), metrics.OODAUROC()):
            if isinstance(metric, metrics.OODAUROC):
                metric.update(p[:, 0], y == 0)
            else:
                metric.update(p, y)
            metric.compute()
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_interval_without_its_two_ends_is_refused():
    with pytest.raises(DataError, match=r"must be a Prediction or a pair \(lower, upper\)"):
        metrics.IntervalCoverage().update(torch.zeros(5), torch.zeros(5))
