"""Penalties and max-norm around real optimizers, in every kind of training."""

import copy
import csv

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import (
    LimitWeightNorm,
    RegularizeElastic,
    RegularizeL1,
    RegularizeL2,
)
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.functional.regularize import soft_threshold_, unit_norms
from tests.callbacks.modules import quiet_trainer

RATE = 0.1
PENALTIES = [RegularizeL1(0.05), RegularizeL2(0.05), RegularizeElastic(0.05), LimitWeightNorm(0.3)]
every_callback = pytest.mark.parametrize(
    "callback", PENALTIES, ids=[type(c).__name__ for c in PENALTIES]
)


class Classifier(L.LightningModule):
    def __init__(self, optimizer=torch.optim.SGD, **settings):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.PReLU(), nn.Linear(8, 3))
        self.make = lambda p: optimizer(p, lr=RATE, **settings)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make(self.parameters())

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(48, 4, generator=generator)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)


def fit(model, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 1, **settings})
    trainer.fit(model)
    return model


def state(model):
    return [value.detach().clone() for value in model.state_dict().values()]


def same(one, other):
    return all(map(torch.equal, state(one), state(other)))


def fresh(callback):
    return copy.deepcopy(callback)


# ---- what is done to weights --------------------------------------------------------------------


def by_hand(act, *, steps=6, optimizer=torch.optim.SGD, **settings):
    """The same training as a plain script, with ``act`` after each step."""
    torch.manual_seed(0)
    model = Classifier(optimizer, **settings)
    weights = [model.net[0].weight, model.net[3].weight]
    chosen = model.configure_optimizers()
    for number, batch in enumerate(model.train_dataloader()):
        if number < steps:
            chosen.zero_grad()
            model.training_step(batch, number).backward()
            chosen.step()
            with torch.no_grad():
                for weight in weights:
                    act(weight)
    return model


@pytest.mark.parametrize(
    ("callback", "act"),
    [
        (RegularizeL1(0.3), lambda w: soft_threshold_(w, RATE * 0.3)),
        (RegularizeL2(0.3), lambda w: w.div_(1 + RATE * 0.3)),
        (
            RegularizeElastic(0.3, l2_strength=0.2),
            lambda w: soft_threshold_(w, RATE * 0.3).div_(1 + RATE * 0.2),
        ),
        (LimitWeightNorm(0.5), lambda w: w.copy_(w.renorm(2, 0, 0.5))),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_that_of_a_plain_script(callback, act, optimizer):
    torch.manual_seed(0)
    model = fit(Classifier(optimizer), fresh(callback))
    for mine, plain in zip(state(model), state(by_hand(act, optimizer=optimizer)), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_l2_is_the_decay_of_adamw_to_first_order():
    decay = 0.01
    torch.manual_seed(0)
    start = state(Classifier())[0]
    torch.manual_seed(0)
    ours = state(fit(Classifier(torch.optim.AdamW, weight_decay=0.0), RegularizeL2(decay)))[0]
    torch.manual_seed(0)
    theirs = state(fit(Classifier(torch.optim.AdamW, weight_decay=decay)))[0]
    # Second order in rate times decay: 6 steps of (0.001)^2.
    assert (ours - theirs).abs().max() < 0.02 * (ours - start).abs().max()


def test_coupled_l1_leaves_no_zero_and_the_proximal_step_many():
    class Coupled(Classifier):
        def training_step(self, batch, batch_idx):
            penalty = sum(self.net[i].weight.abs().sum() for i in (0, 3))
            return super().training_step(batch, batch_idx) + 0.05 * penalty

    zeros = {}
    for name, model, callbacks in (
        ("coupled", Coupled(), []),
        ("proximal", Classifier(), [RegularizeL1(0.05)]),
    ):
        fit(model, *callbacks, max_epochs=30)
        zeros[name] = int((model.net[0].weight == 0).sum())
    assert zeros["coupled"] == 0
    # Three of the four inputs carry nothing, and there are 32 weights.
    assert zeros["proximal"] >= 12


def test_no_unit_is_longer_than_the_bound_at_any_step():
    longest = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, model, *_):
            longest.append(max(unit_norms(model.net[i].weight).max().item() for i in (0, 3)))

    fit(Classifier(), LimitWeightNorm(0.6), Watch())
    assert len(longest) == 6
    assert max(longest) <= 0.6 * (1 + 1e-6)


def test_a_loose_bound_changes_no_bit():
    torch.manual_seed(0)
    bound = fit(Classifier(), LimitWeightNorm(1e3))
    torch.manual_seed(0)
    assert same(bound, fit(Classifier()))


@every_callback
def test_biases_norms_and_slopes_are_left_alone(callback):
    """With a gradient of zero they stay as they are, to the bit; weights do not."""

    class Flat(Classifier):
        def training_step(self, batch, batch_idx):
            return 0.0 * super().training_step(batch, batch_idx)

    model = Flat()
    before = dict(copy.deepcopy(model.state_dict()))
    fit(model, fresh(callback))
    changed = {k for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert changed == {"net.0.weight", "net.3.weight"}


def test_each_group_has_its_own_rate():
    class TwoGroups(Classifier):
        def training_step(self, batch, batch_idx):
            return 0.0 * super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            first, last = self.net[0], self.net[3]
            groups = [
                {"params": first.parameters(), "lr": torch.tensor(0.5)},
                {"params": last.parameters(), "lr": 0.25},
            ]
            return torch.optim.SGD(groups)

    model = TwoGroups()
    before = state(model)
    fit(model, RegularizeL2(1.0), max_steps=1)
    torch.testing.assert_close(model.net[0].weight, before[0] / 1.5)
    torch.testing.assert_close(model.net[3].weight, before[-2] / 1.25)


def test_the_rate_is_that_of_the_step():
    """A schedule that steps after the optimizer does not change what the step had."""

    class Scheduled(Classifier):
        def training_step(self, batch, batch_idx):
            return 0.0 * super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    model = Scheduled()
    before = state(model)[0]
    fit(model, RegularizeL2(1.0), max_steps=2)
    torch.testing.assert_close(model.net[0].weight, before / (1 + RATE) / (1 + RATE / 2))


# ---- in every kind of training ------------------------------------------------------------------


@every_callback
def test_accumulated_batches_are_one_step(callback):
    acted = []
    ours = fresh(callback)
    usual = ours.act_
    ours.act_ = lambda weight, rate: (acted.append(rate), usual(weight, rate))
    fit(Classifier(), ours, accumulate_grad_batches=3)
    assert acted == [RATE] * 2 * 2  # two steps, two weights


@every_callback
def test_two_optimizers_by_hand(callback):
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, last = self.optimizers()
            for optimizer in (first, last, last):
                loss = super().training_step(batch, batch_idx)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            halves = (self.net[0], self.net[3])
            return [torch.optim.SGD(half.parameters(), lr=RATE) for half in halves]

    acted = []
    ours = fresh(callback)
    usual = ours.act_
    ours.act_ = lambda weight, rate: (acted.append(tuple(weight.shape)), usual(weight, rate))
    fit(Manual(), ours, limit_train_batches=2)
    # Each optimizer acts on its own weights, as often as it steps.
    assert acted == [(8, 4), (3, 8), (3, 8)] * 2


@every_callback
def test_frozen_weights_stay(callback):
    model = Classifier()
    model.net[0].weight.requires_grad_(False)
    before = model.net[0].weight.detach().clone()
    fit(model, fresh(callback))
    assert torch.equal(model.net[0].weight, before)


@every_callback
@pytest.mark.parametrize("how", ["step returns None", "gradients taken away"])
def test_a_skipped_step_changes_nothing(callback, how):
    class Skips(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if how == "step returns None" else loss

        def on_before_optimizer_step(self, optimizer):
            for p in self.parameters():
                p.grad = None

    model = Skips()
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, fresh(callback))
    assert all(map(torch.equal, before, model.parameters()))


@every_callback
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_step_that_the_scaler_skips_is_not_regularized(callback, fused):
    class Overflows(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).float() * 1e30

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    model = Overflows(torch.optim.Adam, fused=fused)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, fresh(callback), plugins=[plugin], max_steps=3)
    assert all(map(torch.equal, before, model.parameters()))
    assert scaler.get_scale() < 2.0**30


@every_callback
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_step_under_the_scaler_is_regularized(callback, fused):
    models = []
    for callbacks in ([], [fresh(callback)]):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        model = Classifier(torch.optim.Adam, fused=fused)
        models.append(fit(model, *callbacks, plugins=[plugin], max_steps=3))
    assert not torch.equal(models[0].net[0].weight, models[1].net[0].weight)


def test_an_optimizer_with_a_closure_of_its_own():
    class Second(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=RATE, max_iter=2)

    model = fit(Second(), RegularizeL1(0.5))
    assert (model.net[0].weight == 0).any()


@every_callback
def test_nothing_stays_behind(callback):
    class Keep(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.optimizer = trainer.optimizers[0]

    keep, ours = Keep(), fresh(callback)
    fit(Classifier(), ours, keep)
    assert not keep.optimizer._optimizer_step_post_hooks
    assert not ours._weights


# ---- what is told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (
            RegularizeL1(0.5),
            lambda w: {"penalty": 0.5 * w.abs().sum(), "zeros": (w == 0).float().mean()},
        ),
        (RegularizeL2(0.5), lambda w: {"penalty": 0.25 * (w**2).sum()}),
        (
            RegularizeElastic(0.5, l2_strength=0.2),
            lambda w: {
                "penalty": 0.5 * w.abs().sum() + 0.1 * (w**2).sum(),
                "zeros": (w == 0).float().mean(),
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_penalty_is_logged(callback, expected, tmp_path):
    logger = CSVLogger(str(tmp_path), name="log")
    model = fit(Classifier(), fresh(callback), logger=logger, log_every_n_steps=3)
    logger.save()
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["regularize/penalty"]]
    assert [int(row["step"]) for row in rows] == [2, 5]
    weights = [model.net[i].weight.detach().flatten() for i in (0, 3)]
    for name, value in expected(torch.cat(weights)).items():
        assert float(rows[-1][f"regularize/{name}"]) == pytest.approx(float(value), rel=1e-5)


def test_max_norm_tells_how_many_units_are_at_the_bound(tmp_path):
    logger = CSVLogger(str(tmp_path), name="log")
    model = fit(Classifier(), LimitWeightNorm(0.4), logger=logger, log_every_n_steps=3)
    logger.save()
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    norms = torch.cat([model.net[i].weight.norm(dim=1) for i in (0, 3)])
    limited = (norms > 0.3999).float().mean().item()
    assert 0 < limited < 1
    assert float(rows[-1]["regularize/limited"]) == pytest.approx(limited)
    assert float(rows[-1]["regularize/largest_norm"]) == pytest.approx(norms.max().item())


@pytest.mark.parametrize("callback", [RegularizeL2(), RegularizeElastic()])
def test_two_decays_at_once_are_told(callback):
    model = Classifier(torch.optim.AdamW, weight_decay=0.3)
    with pytest.warns(StableLightningWarning, match=r"weight_decay of 0\.3"):
        fit(model, callback)


def test_half_precision_is_told():
    model = Classifier().bfloat16()
    x = torch.randn(8, 4, dtype=torch.bfloat16)
    model.train_dataloader = lambda: DataLoader(TensorDataset(x, torch.zeros(8, dtype=torch.long)))
    with pytest.warns(StableLightningWarning, match="bf16-mixed"):
        fit(model, RegularizeL1())


def test_a_model_without_weights_is_told():
    class Shift(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.BatchNorm1d(4)

    with pytest.warns(StableLightningWarning, match="no weights to act on"):
        fit(Shift(), RegularizeL1())


def test_weights_behind_a_parametrization_are_told():
    model = Classifier()
    torch.nn.utils.parametrizations.weight_norm(model.net[0])
    with pytest.warns(StableLightningWarning, match="decides its norm"):
        fit(model, LimitWeightNorm())


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "much", None])
@pytest.mark.parametrize("kind", [RegularizeL1, RegularizeL2, LimitWeightNorm])
def test_amounts_out_of_range_are_refused(kind, value):
    with pytest.raises(RecipeError, match=f"must be > 0.*remove {kind.__name__}"):
        kind(value)


@pytest.mark.parametrize("settings", [(-1, 1), (1, -1), (0, 0), (float("nan"), 1)])
def test_elastic_strengths_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match="_strength"):
        RegularizeElastic(settings[0], l2_strength=settings[1])


def test_elastic_without_one_of_the_two():
    assert RegularizeElastic(0, l2_strength=1.0).l1_strength == 0


@every_callback
def test_sharded_weights_are_refused_in_words(callback):
    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(RecipeError, match="whole weights"):
        fresh(callback).setup(trainer, Classifier(), "fit")


def test_an_optimizer_without_a_rate_is_refused():
    class Rateless(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.param_groups[0].pop("lr")
            return optimizer

    with pytest.raises(RecipeError, match="a group without 'lr'"):
        fit(Rateless(), RegularizeL1())
