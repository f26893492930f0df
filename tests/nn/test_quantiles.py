"""Heads that predict a median and an interval: they learn them, and every tool takes them."""

from functools import partial

import lightning as L
import pytest
import torch

import stablelightning as sl
from stablelightning.calibration.conformal import ConformalSets
from stablelightning.calibration.conformal_scores import QuantileScore
from stablelightning.callbacks.records import in_target_units
from stablelightning.errors import ModelError, RecipeError
from stablelightning.functional.intervals import pinball_loss
from stablelightning.model.task import TASKS
from stablelightning.nn import QuantileHead, QuantileMLP, Quantiles

_KNOWN, _NEW = slice(300, 500), slice(500, 800)


@pytest.mark.parametrize(
    ("features", "targets", "shape"),
    [((5, 8), 1, (5,)), ((5, 8), 3, (5, 3)), ((5, 7, 8), 1, (5, 7)), ((8,), 2, (2,))],
)
def test_shapes_and_order(features: tuple[int, ...], targets: int, shape: tuple[int, ...]) -> None:
    quantiles = QuantileHead(8, targets, level=0.6)(10 * torch.randn(features))
    assert {tuple(each.shape) for each in quantiles} == {shape}
    assert bool((quantiles.lower <= quantiles.median).all())
    assert bool((quantiles.median <= quantiles.upper).all())
    assert torch.equal(quantiles.level, torch.full(shape, 0.6))


def test_quantiles_of_lopsided_noise_are_learned() -> None:
    torch.manual_seed(0)
    target = 1 + torch.distributions.Exponential(2.0).sample((8000,))
    head = QuantileHead(1, level=0.8)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        TASKS["regression"].loss(head(torch.zeros(8000, 1)), target).backward()
        optimizer.step()
    learned = [float(each.detach()[0]) for each in head(torch.zeros(1, 1))[:3]]
    wanted = [float(target.quantile(share)) for share in (0.1, 0.5, 0.9)]
    assert learned == pytest.approx(wanted, abs=0.03)


def test_the_loss_is_the_mean_pinball_loss() -> None:
    quantiles, target = QuantileHead(4, 2, level=0.5)(torch.randn(6, 4)), torch.randn(6, 2)
    expected = pinball_loss(torch.stack(quantiles[:3], -1), target, (0.25, 0.5, 0.75)).mean()
    assert torch.allclose(TASKS["regression"].loss(quantiles, target), expected)
    column = QuantileHead(4)(torch.randn(6, 4))
    loss = TASKS["regression"].loss(column, torch.randn(6, 1))  # (N,) meets (N, 1)
    assert loss.ndim == 0


def test_the_loss_runs_under_vmap_as_stacked_members_need_it() -> None:
    head, inputs, target = QuantileHead(4), torch.randn(3, 6, 4), torch.randn(6)
    stacked = torch.vmap(lambda x: TASKS["regression"].loss(head(x), target))(inputs)
    each = [TASKS["regression"].loss(head(x), target) for x in inputs]
    assert torch.allclose(stacked, torch.stack(each))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_quantiles_are_a_regression(task) -> None:
    with pytest.raises(ModelError, match="a Quantiles output is a regression"):
        TASKS[task].loss(QuantileHead(4)(torch.randn(3, 4)), torch.zeros(3))


def test_variance_is_that_of_the_normal_distribution() -> None:
    normal = torch.distributions.Normal(3.0, 2.0)
    lower, upper = (normal.icdf(torch.tensor([q])) for q in (0.05, 0.95))
    quantiles = Quantiles(lower, torch.tensor([3.0]), upper, torch.tensor([0.9]))
    assert quantiles.variance.item() == pytest.approx(4.0, rel=1e-5)
    assert quantiles.mean.item() == 3.0


@pytest.mark.parametrize("engine", ["loop", "replay", "vmap", "repeat"])
def test_samples_of_quantiles_become_one_prediction(engine) -> None:
    torch.manual_seed(0)
    net, inputs = QuantileMLP(4, hidden=(16,), dropout=0.4, level=0.9), torch.randn(5, 4)
    prediction = sl.mc_dropout(net, inputs, samples=60, seed=0, engine=engine, keep_samples=True)
    samples = prediction.samples
    assert prediction.task == "regression"
    assert prediction.level == 0.9
    for name, of_samples in (("lower", samples.lower), ("mean", samples.median)):
        assert torch.allclose(getattr(prediction, name), of_samples.mean(0), atol=1e-5)
    assert torch.allclose(prediction.upper, samples.upper.mean(0), atol=1e-5)
    epistemic = samples.median.var(0, correction=0)
    assert torch.allclose(prediction.epistemic, epistemic, atol=1e-5)
    assert torch.allclose(prediction.aleatoric, samples.variance.mean(0), atol=1e-5)
    scaled = in_target_units(prediction, (torch.tensor(10.0), torch.tensor(2.0)))
    assert torch.allclose(scaled.lower, prediction.lower * 2 + 10)
    assert torch.allclose(scaled.samples.upper, samples.upper * 2 + 10)


def test_a_new_head_predicts_so_many_targets() -> None:
    net = QuantileMLP(4, hidden=(8,))
    sl.replace_head(net, 3)
    assert net(torch.randn(5, 4)).median.shape == (5, 3)


def test_a_module_trains_samples_and_is_conformalized() -> None:
    torch.manual_seed(0)
    x = torch.rand(800, 1)
    y = x[:, 0] + (0.1 + x[:, 0]) * torch.randn(800)

    class Net(sl.StableMixin, L.LightningModule):
        def __init__(self, **kwargs) -> None:
            super().__init__(task="regression", samples=10, **kwargs)
            self.net = QuantileMLP(1, hidden=(16,), level=0.9)

        def forward(self, inputs):
            return self.net(inputs)

    module = Net(optimizer=partial(torch.optim.Adam, lr=0.02))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:300], y[:300]), 50)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[sl.EstimateUncertainty(samples=5)],
    )
    trainer.fit(module, data, data)
    results = trainer.test(module, data, verbose=False)[0]
    assert results["uncertainty/rmse_mc"] == pytest.approx(results["test/rmse"], rel=0.2)
    known, new = (module.predict_step((x[part], None), 0) for part in (_KNOWN, _NEW))
    conformal = ConformalSets(0.1).fit(known, y[_KNOWN])
    assert isinstance(conformal.fitted_score, QuantileScore)
    prediction = conformal(new)
    held = ((prediction.lower <= y[_NEW]) & (y[_NEW] <= prediction.upper)).float().mean()
    assert 0.8 < float(held) < 0.98
    width = prediction.upper - prediction.lower
    assert float(width[x[_NEW, 0] > 0.8].mean()) > 1.5 * float(width[x[_NEW, 0] < 0.2].mean())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"level must be in \(0, 1\), got 1"):
        QuantileMLP(4, level=1.0)
    with pytest.raises(RecipeError, match="out_features must be >= 1, got 0"):
        QuantileHead(4, 0)
