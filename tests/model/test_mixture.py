"""The mixture of members is what all of their samples say together."""

import pytest
import torch
from torch import nn

from stablelightning import mc_dropout, sample_predictions
from stablelightning.errors import DataError, ModelError
from stablelightning.model.mixture import combine_predictions
from stablelightning.model.stacked import StackedNetworks
from stablelightning.model.summarize import Summary
from stablelightning.nn import MLP
from stablelightning.nn.heads import Gaussian

TASKS = {
    "classification": lambda: MLP(4, 3, hidden=[8], dropout=0.5),
    "multilabel": lambda: MLP(4, 3, hidden=[8], dropout=0.5),
    "regression": lambda: MLP(4, hidden=[8], dropout=0.5, variance=True),
}


@pytest.mark.parametrize("task", TASKS)
def test_combining_predictions_is_pooling_their_samples(task):
    nets = [TASKS[task]().eval() for _ in range(3)]
    x = torch.randn(6, 4)
    members = [mc_dropout(net, x, samples=20, seed=0, task=task, keep_samples=True) for net in nets]
    whole = combine_predictions(members)

    pooled = Summary(task)
    for member in members:
        pooled.update_(member.samples)
    expected = pooled.prediction(engine="pooled")
    for name in ("mean", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(whole, name), getattr(expected, name))
    assert whole.samples_used == 60
    kept = whole.samples.mean if isinstance(whole.samples, Gaussian) else whole.samples
    assert len(kept) == 60


def test_classes_on_the_last_axis():
    members = [
        mc_dropout(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), torch.randn(2, 5, 4),
                   samples=4, task="classification", class_dim=-1)
        for _ in range(2)
    ]  # fmt: skip
    whole = combine_predictions(members, class_dim=-1)
    assert whole.total.shape == whole.variation_ratio.shape == (2, 5)


def test_members_that_agree_are_not_epistemic_and_the_error_of_the_mean_is_between_members():
    net = nn.Linear(4, 3)
    x = torch.randn(6, 4)
    same = mc_dropout(StackedNetworks([net] * 4), x)
    torch.testing.assert_close(same.epistemic, torch.zeros(6), atol=1e-6, rtol=0)
    assert not same.standard_error.any() or same.standard_error.max() < 1e-6

    nets = [MLP(4, 3, hidden=[8], dropout=0.5) for _ in range(4)]
    few, many = (
        combine_predictions([mc_dropout(n, x, samples=t, seed=0) for n in nets]) for t in (50, 800)
    )
    # Sixteen times the samples, and still four members.
    assert many.standard_error.mean() > 0.5 * few.standard_error.mean()


def test_a_stack_without_dropout_is_run_once_and_one_with_dropout_sampled():
    x = torch.randn(6, 4)
    plain = StackedNetworks([nn.Linear(4, 3) for _ in range(5)])
    prediction = mc_dropout(plain, x, samples=30, keep_samples=True)
    assert prediction.samples_used == 5
    torch.testing.assert_close(prediction.samples, plain(x).detach())
    torch.testing.assert_close(prediction.mean, plain(x).detach().softmax(-1).mean(0))

    nets = [TASKS["classification"]() for _ in range(3)]
    stacked = StackedNetworks(nets)
    sampled = mc_dropout(stacked, x, samples=40, seed=1, keep_samples=True)
    assert sampled.samples_used == 120
    assert sampled.samples.shape == (120, 6, 3)
    again = mc_dropout(stacked, x, samples=40, seed=1)
    assert torch.equal(again.mean, sampled.mean)
    assert stacked.training
    assert all(module.training for module in stacked.modules())
    first = sample_predictions(stacked.member(0), x, samples=4000, seed=2).softmax(-1).mean(0)
    torch.testing.assert_close(
        mc_dropout(stacked, x, samples=4000, seed=3, keep_samples=True)
        .samples[:4000]
        .softmax(-1)
        .mean(0),
        first,
        atol=0.03,
        rtol=0,
    )


def test_what_does_not_belong_together():
    x = torch.randn(6, 4)
    three = mc_dropout(TASKS["classification"](), x, samples=2)
    other = mc_dropout(MLP(4, 5, hidden=[8], dropout=0.5), x, samples=2)
    value = mc_dropout(TASKS["regression"](), x, samples=2)
    with pytest.raises(DataError, match="one or more predictions"):
        combine_predictions([])
    with pytest.raises(DataError, match="same rows and classes"):
        combine_predictions([three, other])
    with pytest.raises(ModelError, match="one task"):
        combine_predictions([three, value])


def test_samples_of_which_one_member_has_more_are_left_out():
    net = MLP(4, hidden=[8], dropout=0.5, variance=True).eval()
    x = torch.randn(6, 4)
    few, many = (mc_dropout(net, x, samples=t, keep_samples=True) for t in (3, 9))
    whole = combine_predictions([few, many])
    assert whole.samples is None
    torch.testing.assert_close(whole.mean, (few.mean + many.mean) / 2)
