"""Conformal sets: what they hold, that they are the same in every batch, and what they refuse."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stablelightning.calibration.conformal import ConformalSets
from stablelightning.calibration.conformal_scores import (
    AdaptiveScore,
    ConformityScore,
    LeastAmbiguousScore,
    QuantileScore,
    RegularizedAdaptiveScore,
    ResidualScore,
    ScaledResidualScore,
    usual_score,
)
from stablelightning.errors import CheckpointError, DataError, ModelError, RecipeError
from stablelightning.functional.conformal_coverage import coverage_band
from stablelightning.model.prediction import Prediction
from stablelightning.model.prediction_rows import take_rows

CLASS_SCORES = [LeastAmbiguousScore(), AdaptiveScore(), RegularizedAdaptiveScore(free=1)]
VALUE_SCORES = [ResidualScore(), ScaledResidualScore(), QuantileScore()]


def classified(rows: int, *, classes: int = 4, seed: int = 0) -> tuple[Prediction, Tensor]:
    """An over-confident classifier, and targets that are not drawn from what it says."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    target = logits.softmax(1).multinomial(1, generator=generator).squeeze(1)
    mean = (3 * logits).softmax(1)
    zero = torch.zeros(rows)
    return Prediction("classification", mean, zero, zero, zero, zero, 1, "loop"), target


def measured(rows: int, *, outputs: int = 0, seed: int = 0) -> tuple[Prediction, Tensor]:
    """A regression whose noise grows with its mean, and which says so, three times too small."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, outputs) if outputs else (rows,)
    mean = torch.rand(*shape, generator=generator)
    std = 0.1 + mean
    target = mean + std * torch.randn(*shape, generator=generator)
    variance = (std / 3).square()
    zero = torch.zeros(shape)
    prediction = Prediction("regression", mean, variance, variance, zero, zero, 1, "loop")
    return replace(prediction, lower=mean - std, upper=mean + 0.5 * std, level=0.5), target


def held_share(prediction: Prediction, target: Tensor) -> Tensor:
    if prediction.sets is not None:
        return prediction.sets.gather(1, target[:, None]).float().mean()
    assert prediction.lower is not None
    assert prediction.upper is not None
    return ((prediction.lower <= target) & (target <= prediction.upper)).float().mean(0)


@pytest.mark.parametrize("score", [*CLASS_SCORES, *VALUE_SCORES], ids=repr)
def test_new_rows_are_held_as_often_as_promised(score: ConformityScore) -> None:
    draw = classified if score.task == "classification" else measured
    known, target = draw(500)
    new, later = draw(2000, seed=1)
    prediction = ConformalSets(0.2, score=score).fit(known, target)(new)
    low, high = coverage_band(500, 2000, 0.2, probability=0.999)
    assert low <= held_share(prediction, later) <= high
    assert prediction.level == 0.8
    assert prediction.corrected == ("conformal",)
    assert torch.equal(prediction.mean, new.mean)


def test_each_of_several_outputs_is_held_on_its_own() -> None:
    (known, target), (new, later) = measured(500, outputs=3), measured(2000, outputs=3, seed=1)
    scale = torch.tensor([1.0, 5.0, 0.2])
    fitted = ConformalSets(0.2, score=ScaledResidualScore()).fit(
        known, known.mean + (target - known.mean) * scale
    )
    assert fitted.thresholds is not None
    assert fitted.thresholds.shape == (3,)
    low, high = coverage_band(500, 2000, 0.2, probability=0.999)
    held = held_share(fitted(new), new.mean + (later - new.mean) * scale)
    assert bool(((held >= low) & (held <= high)).all())


def test_by_class_every_class_is_held_where_one_threshold_misses_a_hard_one() -> None:
    def of_classes(seed: int) -> tuple[Prediction, Tensor]:
        prediction, _ = classified(8000, classes=3, seed=seed)
        generator = torch.Generator().manual_seed(seed + 100)
        target = torch.randint(3, (8000,), generator=generator)
        # Class 0 is always seen for what it is; the others are guesses.
        sure = torch.tensor([0.98, 0.01, 0.01]).expand_as(prediction.mean)
        mean = torch.where((target == 0)[:, None], sure, prediction.mean)
        return replace(prediction, mean=mean), target

    (known, target), (new, later) = of_classes(0), of_classes(1)
    worst = {}
    for by_class in (False, True):
        sets = ConformalSets(0.3, by_class=by_class).fit(known, target)(new).sets
        assert sets is not None
        held = sets.gather(1, later[:, None]).squeeze(1).float()
        worst[by_class] = min(float(held[later == k].mean()) for k in range(3))
    low, high = coverage_band(2600, 2600, 0.3, probability=0.999)
    assert worst[False] < 0.6
    assert low <= worst[True] <= high


def test_least_ambiguous_sets_are_the_smallest() -> None:
    (known, target), (new, _) = classified(1000), classified(1000, seed=1)
    sizes = []
    for score in (LeastAmbiguousScore(), AdaptiveScore(), AdaptiveScore(randomized=False)):
        sets = ConformalSets(0.1, score=score).fit(known, target)(new).sets
        assert sets is not None
        sizes.append(float(sets.sum(1).float().mean()))
    assert sizes == sorted(sizes)


def test_without_draws_no_set_is_empty_and_more_is_held() -> None:
    (known, target), (new, later) = classified(1000), classified(1000, seed=1)
    for kind in (AdaptiveScore, RegularizedAdaptiveScore):
        drawn, whole = (
            ConformalSets(0.2, score=kind(randomized=drawn)).fit(known, target)(new)
            for drawn in (True, False)
        )
        assert whole.sets is not None
        assert bool(whole.sets.any(1).all())
        assert held_share(whole, later) >= held_share(drawn, later)


def test_scaled_intervals_are_wide_where_errors_are_large() -> None:
    known, target = measured(500)
    scaled = ConformalSets(score=ScaledResidualScore()).fit(known, target)(known)
    constant = ConformalSets(score=ResidualScore()).fit(known, target)(known)
    noisy = known.mean > 0.8
    for prediction, ratio in ((scaled, 2.0), (constant, 1.0)):
        assert prediction.lower is not None
        assert prediction.upper is not None
        width = prediction.upper - prediction.lower
        assert float(width[noisy].mean() / width.mean()) == pytest.approx(ratio, rel=0.6)
        assert (float(width[noisy].mean() / width.mean()) > 1.3) is (ratio > 1)


def test_quantiles_keep_their_form_and_never_turn_inside_out() -> None:
    known, target = measured(200)
    assert known.lower is not None
    assert known.upper is not None
    fitted = ConformalSets(0.1).fit(known, target)
    assert isinstance(fitted.fitted_score, QuantileScore)
    wider = fitted(known)
    assert wider.lower is not None
    assert wider.upper is not None
    moved = known.lower - wider.lower
    assert torch.allclose(moved, wider.upper - known.upper, atol=1e-5)
    assert float(moved.std()) < 1e-5
    huge = replace(known, lower=known.mean - 50, upper=known.mean + 50 + known.mean)
    narrow = ConformalSets(0.9).fit(huge, target)(replace(known, lower=known.mean, upper=target))
    assert narrow.lower is not None
    assert narrow.upper is not None
    assert bool((narrow.lower <= narrow.upper).all())


def test_the_usual_score_follows_the_prediction() -> None:
    prediction, _ = measured(5)
    plain = replace(prediction, lower=None, upper=None, level=None)
    assert isinstance(usual_score(prediction), QuantileScore)
    assert isinstance(usual_score(plain), ScaledResidualScore)
    sure = replace(plain, total=torch.zeros(5))
    assert isinstance(usual_score(sure), ResidualScore)
    assert isinstance(usual_score(classified(5)[0]), LeastAmbiguousScore)


def test_drawn_sets_depend_on_the_row_and_not_on_its_batch() -> None:
    known, target = classified(300)
    new, _ = classified(200, seed=1)
    rows = torch.arange(1000, 1200)
    fitted = ConformalSets(0.2, score=AdaptiveScore()).fit(known, target, rows=torch.arange(300))
    whole = fitted(new, rows=rows).sets
    order = torch.randperm(200)
    parts = [fitted(take_rows(new, part), rows=rows[part]).sets for part in order.split(7)]
    assert whole is not None
    assert torch.equal(torch.cat([p for p in parts if p is not None]), whole[order])
    other = ConformalSets(0.2, score=AdaptiveScore(seed=1)).fit(known, target)(new, rows=rows).sets
    assert other is not None
    assert not torch.equal(other, whole)
    unnamed, again = fitted(new).sets, fitted(take_rows(new, order)).sets
    assert unnamed is not None
    assert again is not None
    assert torch.equal(again, unnamed[order])


def test_an_empty_set_can_be_given_the_best_class() -> None:
    known, target = classified(1000)
    sure = replace(known, mean=torch.nn.functional.one_hot(target, 4).float())
    fitted = ConformalSets(0.1).fit(sure, target)
    unsure = replace(known, mean=torch.tensor([[0.3, 0.3, 0.2, 0.2]]).expand(1000, 4))
    empty = fitted(unsure).sets
    assert empty is not None
    assert int(empty.sum()) == 0
    filled = ConformalSets(0.1, allow_empty=False).fit(sure, target)(unsure).sets
    assert filled is not None
    assert filled.sum(1).tolist() == [1] * 1000


@pytest.mark.parametrize("score", [None, *CLASS_SCORES, *VALUE_SCORES], ids=repr)
def test_state_comes_back_without_pickled_code(score: ConformityScore | None) -> None:
    draw = classified if score is None or score.task == "classification" else measured
    (known, target), (new, _) = draw(100), draw(50, seed=1)
    fitted = ConformalSets(score=score).fit(known, target, rows=torch.arange(100))
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    loaded = ConformalSets(score=score)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    ours, theirs = loaded(new), fitted(new)
    for name in ("sets", "lower", "upper"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None and other is None) or torch.equal(one, other)
    assert repr(loaded.fitted_score) == repr(fitted.fitted_score)
    with pytest.raises(DataError, match="must not be judged by the rows"):
        loaded(known, rows=torch.arange(100))


def test_state_of_other_settings_is_refused() -> None:
    state = ConformalSets(score=AdaptiveScore(seed=3)).fit(*classified(100)).state_dict()
    with pytest.raises(CheckpointError, match=r"fitted for 0\.1, got alpha=0\.05; set it back"):
        ConformalSets(0.05).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"got AdaptiveScore.*seed=4"):
        ConformalSets(score=AdaptiveScore(seed=4)).load_state_dict(state)
    ConformalSets().load_state_dict(state)
    with pytest.raises(CheckpointError, match="fitted for Mine, which is not known here"):
        ConformalSets().load_state_dict({**state, "score": "Mine"})


class HalfProbability(LeastAmbiguousScore):
    """A score of a user's own."""


def test_a_score_of_ones_own_is_taken_and_loaded() -> None:
    known, target = classified(100)
    state = ConformalSets(score=HalfProbability()).fit(known, target).state_dict()
    loaded = ConformalSets(score=HalfProbability())
    loaded.load_state_dict(state)
    assert isinstance(loaded.fitted_score, HalfProbability)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.2, float("nan"), "0.1", True])
def test_alpha_is_checked_at_once(alpha: Any) -> None:
    with pytest.raises(RecipeError, match=re.escape("alpha must be in (0, 1)")):
        ConformalSets(alpha)


def test_a_score_must_be_one() -> None:
    with pytest.raises(RecipeError, match="score must be a conformity score, got 'aps'"):
        ConformalSets(score="aps")  # type: ignore[arg-type]


def test_fewer_rows_than_one_over_alpha_are_refused() -> None:
    with pytest.raises(DataError, match=r"alpha=0\.05 needs 20 calibration rows .*, got 19"):
        ConformalSets(0.05).fit(*classified(19))
    ConformalSets(0.05).fit(*classified(20))
    target = torch.tensor([0] * 20 + [1] * 20 + [2] * 3 + [3] * 20)
    with pytest.raises(DataError, match=r"by_class needs as many .* and class 2 has 3"):
        ConformalSets(by_class=True).fit(classified(63)[0], target)


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match="rows of two classes or more, got those of class 2 only"):
        ConformalSets().fit(classified(50)[0], torch.full((50,), 2))


@pytest.mark.parametrize("score", CLASS_SCORES, ids=repr)
def test_logits_and_sums_that_are_not_one_are_refused(score: ConformityScore) -> None:
    prediction, target = classified(50)
    logits = replace(prediction, mean=prediction.mean.log() + 3)
    with pytest.raises(DataError, match="take the softmax of logits first"):
        ConformalSets(score=score).fit(logits, target)
    fitted = ConformalSets(score=score).fit(prediction, target)
    with pytest.raises(DataError, match="must be >= 0 and sum to one"):
        fitted(replace(prediction, mean=prediction.mean / 2))


def test_nan_is_refused_when_fitting_and_when_predicting() -> None:
    prediction, target = measured(50)
    broken = replace(prediction, mean=prediction.mean.clone())
    broken.mean[3] = float("nan")
    with pytest.raises(DataError, match="fitted on finite predictions and targets"):
        ConformalSets().fit(broken, target)
    with pytest.raises(DataError, match="need finite predictions, got NaN"):
        ConformalSets().fit(prediction, target)(broken)
    unknown = target.clone()
    unknown[[1, 2]] = float("nan")
    with pytest.raises(DataError, match="finite predictions and targets"):
        ConformalSets().fit(prediction, unknown)
    assert prediction.lower is not None
    lower = prediction.lower.clone()
    lower[0] = float("nan")
    with pytest.raises(DataError, match="got 1 NaN in 50"):
        ConformalSets().fit(replace(prediction, lower=lower), target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.arange(50), r"class indices must be in \[0, 4\), got 0 to 49"),
        (torch.arange(50) % 4 - 1, r"got -1 to 2"),
        (torch.rand(50), r"must be class indices \(N,\), got torch.float32"),
        (torch.ones(50, 4).long(), r"of shape \(50, 4\)"),
        (torch.arange(49) % 4, "every row needs a target, got 50 predictions and 49 targets"),
    ],
)
def test_targets_that_are_no_classes_are_refused(target: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ConformalSets().fit(classified(50)[0], target)


def test_what_does_not_belong_together_is_refused() -> None:
    (classes, labels), (values, target) = classified(50), measured(50)
    with pytest.raises(ModelError, match=r"AdaptiveScore is for .* got .* regression"):
        ConformalSets(score=AdaptiveScore()).fit(values, target)
    with pytest.raises(ModelError, match="by_class needs classes"):
        ConformalSets(by_class=True).fit(values, target)
    with pytest.raises(ModelError, match="QuantileScore needs predictions with lower and upper"):
        ConformalSets(score=QuantileScore()).fit(replace(values, lower=None), target)
    with pytest.raises(ModelError, match="got a prediction of multilabel"):
        ConformalSets().fit(replace(classes, task="multilabel"), labels)
    with pytest.raises(ModelError, match="must be fitted before"):
        ConformalSets()(classes)
    with pytest.raises(ModelError, match="of 4 outputs, got a regression of 1 output;"):
        ConformalSets().fit(classes, labels)(values)
    with pytest.raises(DataError, match=r"shape of the predictions \(50,\), got \(50, 2\)"):
        ConformalSets().fit(values, torch.rand(50, 2))
    dense = replace(classes, mean=torch.rand(50, 4, 3, 3).softmax(1))
    with pytest.raises(DataError, match="flatten pixels and tokens"):
        ConformalSets().fit(dense, labels)
