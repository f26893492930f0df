"""Thresholds on predictions: chosen where targets are known, kept elsewhere, and their reasons."""

import math
from dataclasses import replace

import pytest
import torch

import stablelightning as sl
from stablelightning.errors import DataError, ModelError, RecipeError
from stablelightning.model.abstain import Thresholds, choose_thresholds, decide
from stablelightning.model.prediction import Prediction


def classified(rows=400, seed=0, classes=4):
    """Rows whose probability of being right is what the mean says."""
    generator = torch.Generator().manual_seed(seed)
    mean = (torch.randn(rows, classes, generator=generator) * 2).softmax(1)
    target = torch.multinomial(mean, 1, generator=generator)[:, 0]
    total = -(mean * mean.log()).sum(1)
    share = torch.rand(rows, generator=generator) * 0.5
    return Prediction(
        task="classification",
        mean=mean,
        total=total,
        aleatoric=total * (1 - share),
        epistemic=total * share,
        standard_error=mean * 0,
        samples_used=10,
        engine="made by hand",
    ), target


def measured(rows=400, seed=0, shape=()):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(rows, *shape, generator=generator) * 50
    aleatoric = torch.rand(rows, *shape, generator=generator) * 10 + 1
    epistemic = torch.rand(rows, *shape, generator=generator) * 5
    total = aleatoric + epistemic
    noise = torch.randn(rows, *shape, generator=generator)
    return Prediction(
        task="regression",
        mean=mean,
        total=total,
        aleatoric=aleatoric,
        epistemic=epistemic,
        standard_error=mean * 0,
        samples_used=10,
        engine="made by hand",
    ), mean + total.sqrt() * noise


def test_what_was_chosen_holds_where_it_was_chosen():
    known, target = classified()
    for wanted in ({"coverage": 0.7}, {"risk": 0.1}):
        thresholds = choose_thresholds(known, target, **wanted)
        answered = decide(known, thresholds).answered
        assert answered.float().mean().item() == pytest.approx(thresholds.coverage)
        wrong = (known.mean.argmax(1) != target)[answered]
        assert wrong.float().mean().item() == pytest.approx(thresholds.risk)
        assert thresholds.risk <= wanted.get("risk", 1)
        assert thresholds.coverage >= wanted.get("coverage", 0)


def test_a_chosen_risk_holds_about_as_well_on_new_rows():
    known, target = classified(rows=4000)
    new, later = classified(rows=4000, seed=1)
    decided = new.abstain(risk=0.1, validation=known, target=target)
    risk = (new.mean.argmax(1) != later)[decided.answered].float().mean()
    everybody = (new.mean.argmax(1) != later).float().mean()
    assert 0.08 < risk < 0.12 < everybody


def test_a_promise_answers_fewer_rows_and_says_its_bound():
    known, target = classified(rows=2000)
    plain = choose_thresholds(known, target, risk=0.1)
    sure = choose_thresholds(known, target, risk=0.1, confidence=0.95)
    assert sure.coverage < plain.coverage
    assert sure.risk < sure.bound <= 0.1
    assert plain.bound is None


def test_the_risk_of_a_regression_is_in_target_units():
    known, target = measured()
    thresholds = choose_thresholds(known, target, risk=2.9)
    answered = decide(known, thresholds).answered
    error = (known.mean - target)[answered].square().mean().sqrt()
    assert error.item() == pytest.approx(thresholds.risk)
    assert thresholds.risk <= 2.9 < (known.mean - target).square().mean().sqrt()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4)])
def test_a_row_of_several_values_is_decided_as_one(shape):
    known, target = measured(shape=shape)
    decided = known.abstain(coverage=0.5, validation=known, target=target)
    assert decided.answered.shape == decided.reason.shape == (400,)
    assert decided.answered.sum() == 200


def test_labels_and_pixels_cost_the_share_that_is_wrong():
    known, _ = classified(rows=50, classes=4)
    many = replace(known, task="multilabel", total=known.mean, aleatoric=known.mean / 2)
    many = replace(many, epistemic=known.mean / 2)
    target = (known.mean > 0.5).float()
    target[:, 0] = 1 - target[:, 0]
    assert choose_thresholds(many, target, coverage=0.9).risk == pytest.approx(0.25)


def test_every_row_has_a_reason_and_only_the_answered_have_none():
    known, target = classified()
    decided = known.abstain(coverage=0.6, validation=known, target=target)
    assert set(decided.reasons) == {"answered", "aleatoric", "epistemic", "out of distribution"}
    assert [word == "answered" for word in decided.reasons] == decided.answered.tolist()
    assert decided.reasons.count("out of distribution") == 4  # one in a hundred


def test_a_row_with_more_doubt_than_any_known_is_out_of_distribution():
    known, target = classified()
    thresholds = choose_thresholds(known, target, coverage=0.9, unfamiliar=0)
    assert "out of distribution" not in decide(known, thresholds).reasons
    strange = replace(known, epistemic=known.epistemic + known.epistemic.max())
    assert set(decide(strange, thresholds).reasons) <= {"out of distribution"}


def test_more_data_would_help_where_noise_alone_would_be_answered():
    known, _ = classified(rows=1)
    row = replace(
        known,
        total=torch.tensor([1.0]),
        aleatoric=torch.tensor([0.3]),
        epistemic=torch.tensor([0.7]),
    )
    assert decide(row, Thresholds(total=0.5)).reasons == ["epistemic"]
    assert decide(row, Thresholds(total=0.2)).reasons == ["aleatoric"]
    assert decide(row, Thresholds(total=2.0)).reasons == ["answered"]
    assert decide(row, Thresholds(total=2.0, epistemic=0.6)).reasons == ["out of distribution"]


def test_sampled_predictions_of_a_network_are_decided_upon():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3))
    known = sl.mc_dropout(net, torch.randn(60, 4), samples=20, seed=0)
    new = sl.mc_dropout(net, 100 * torch.randn(20, 4), samples=20, seed=0)
    decided = new.abstain(coverage=0.9, validation=known, target=known.mean.argmax(1))
    assert "out of distribution" in decided.reasons
    assert torch.equal(decided.to("cpu").answered, decided.answered)


def test_half_precision_is_decided_as_single():
    known, target = classified()
    half = replace(known, total=known.total.half(), epistemic=known.epistemic.half())
    half = replace(half, aleatoric=known.aleatoric.half())
    thresholds = choose_thresholds(half, target, coverage=0.5)
    assert decide(half, thresholds).answered.sum() >= 200


def test_reasons_of_an_undecided_prediction_are_refused():
    known, _ = classified()
    with pytest.raises(ModelError, match="nobody decided on this one"):
        known.reasons


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "either risk or coverage must be given"),
        ({"risk": 0.1, "coverage": 0.5}, "either risk or coverage must be given"),
        ({"risk": 0}, "risk must be > 0"),
        ({"risk": -1.0}, "risk must be > 0"),
        ({"coverage": 0}, r"coverage must be in \(0, 1\]"),
        ({"coverage": 2}, r"coverage must be in \(0, 1\]"),
        ({"coverage": 0.5, "confidence": 0.9}, "confidence promises a risk"),
        ({"risk": 0.1, "confidence": 1.0}, r"confidence must be in \(0, 1\)"),
        ({"risk": 0.1, "unfamiliar": 1.0}, r"unfamiliar must be in \[0, 1\)"),
        ({"coverage": 0.95, "unfamiliar": 0.1}, "at most 1 together"),
        ({"risk": 1e-6}, "takes at least 1000000 rows to see"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(asked, says):
    with pytest.raises(RecipeError, match=says):
        choose_thresholds(*classified(), **asked)


def test_a_risk_below_all_that_a_regression_can_do_says_the_best_and_that_it_is_squared():
    with pytest.raises(RecipeError, match=r"the best of 400 rows .*0.1 squared is 0.01"):
        choose_thresholds(*measured(), risk=0.1)


@pytest.mark.parametrize("value", [-0.1, math.nan])
@pytest.mark.parametrize("name", ["total", "epistemic"])
def test_a_threshold_that_no_row_can_meet_is_refused(name, value):
    with pytest.raises(RecipeError, match=f"{name} must be >= 0, got .*no row would be answered"):
        Thresholds(**{"total": 1.0, name: value})


@pytest.mark.parametrize("name", ["total", "aleatoric", "epistemic"])
def test_nan_is_refused_when_choosing_and_when_deciding(name):
    known, target = classified()
    broken = getattr(known, name).clone()
    broken[3] = math.nan
    broken = replace(known, **{name: broken})
    with pytest.raises(DataError, match="must not be NaN, got 1 such rows of 400"):
        choose_thresholds(broken, target, coverage=0.5)
    with pytest.raises(DataError, match="must not be NaN, got 1 such rows of 400"):
        broken.abstain(Thresholds(total=1.0))


def test_targets_of_other_rows_are_refused():
    known, target = classified()
    with pytest.raises(DataError, match="400 predictions and 7 targets"):
        choose_thresholds(known, target[:7], coverage=0.5)


def test_nothing_to_choose_from_is_refused():
    known, _ = classified()
    with pytest.raises(RecipeError, match="got neither"):
        known.abstain(coverage=0.5)


def test_an_entropy_that_rounds_below_zero_is_no_uncertainty_below_zero():
    prediction, target = classified(rows=40)
    sure = replace(prediction, total=torch.full((40,), -1e-7), epistemic=torch.zeros(40))
    thresholds = choose_thresholds(sure, target, coverage=0.5)
    assert thresholds.total == 0
    assert bool(decide(sure, thresholds).answered.all())


@pytest.mark.parametrize("spoil", [lambda target: target[:, None], lambda target: target[None]])
def test_targets_that_would_spread_over_other_rows_are_refused(spoil):
    prediction, target = classified()
    with pytest.raises(DataError, match="target"):
        choose_thresholds(prediction, spoil(target), coverage=0.8)
