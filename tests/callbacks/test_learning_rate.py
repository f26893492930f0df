"""Rates that are found by trying: what is chosen, when, and what is said."""

import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import FindLearningRate, HalveLearningRate
from stablelightning.callbacks.rate_trials import Run, Trials
from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from tests.callbacks.modules import quiet_trainer
from tests.callbacks.test_rehearsal import Everything, assert_same, fitted

FEATURES = 6


class Teacher(L.LightningModule):
    """A regression that SGD learns best near a rate of 0.5, and at which it diverges above 1."""

    def __init__(self, lr: float = 0.001, schedule: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(FEATURES, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.lr, self.schedule = lr, schedule

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.mse_loss(self.net(x)[:, 0], y)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(512, FEATURES, generator=generator)
        return DataLoader(TensorDataset(x, x @ torch.arange(1.0, 7.0)), batch_size=64)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


def found(callback: L.Callback, model: L.LightningModule | None = None, **settings: Any) -> Any:
    model = model or Teacher()
    trainer = quiet_trainer(callback, **{"max_steps": 1, "max_epochs": -1} | settings)
    trainer.fit(model)
    return trainer


def finder(**settings: Any) -> FindLearningRate:
    """One that takes less time."""
    return FindLearningRate(**{"steps": 60, "confirm_steps": 40} | settings)


def rate_of(trainer: L.Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


# ---- the sweep ----------------------------------------------------------------------------------


def test_the_rate_is_near_the_best_and_below_where_it_breaks():
    find = finder()
    trainer = found(find)
    assert 0.05 < find.suggested < 0.9
    assert find.diverged_at > find.suggested
    assert rate_of(trainer) == pytest.approx(find.suggested)
    assert find.history["applied"]


def test_the_valley_alone_lies_on_the_slope():
    find = finder(confirm_steps=0)
    found(find)
    low, high = find.history["valley"]
    assert low < find.suggested < high <= find.diverged_at
    assert find.history["runs"] == []


def test_the_chosen_run_is_the_best_of_those_that_held():
    find = finder()
    found(find)
    runs = {run["rate"]: run["score"] for run in find.history["runs"] if run["stable"]}
    level = F.mse_loss(torch.zeros(512), Teacher().train_dataloader().dataset.tensors[1])
    assert runs[find.suggested] <= min(runs.values()) + 0.03 * float(level)
    ratios = [b / a for a, b in zip(sorted(runs), sorted(runs)[1:], strict=False)]
    assert ratios == pytest.approx([3.0] * len(ratios))


def test_another_rate_of_the_user_makes_no_difference():
    finders = [finder(), finder()]
    for find, lr in zip(finders, (1e-5, 0.3), strict=True):
        found(find, Teacher(lr))
    assert finders[0].suggested == pytest.approx(finders[1].suggested)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.002, total_steps=50), "max_lr"),
        (lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=9), "initial_lr"),
    ],
)
def test_a_schedule_goes_on_around_the_found_rate(schedule, name):
    class Adam(Teacher):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    find = finder()
    trainer = found(find, Adam(0.002), max_steps=9)
    assert trainer.optimizers[0].param_groups[0][name] == pytest.approx(find.suggested)
    plain = found(L.Callback(), Adam(0.002), max_steps=9)
    assert rate_of(trainer) / rate_of(plain) == pytest.approx(find.suggested / 0.002)


def test_looking_changes_nothing():
    looks = FindLearningRate(lowest=1e-3, steps=20, confirm_steps=5, apply=False)
    seen = fitted(looks)
    plain = fitted()
    for part in ("weights", "optimizer", "schedulers", "own", "logged", "random", "counters"):
        assert_same(seen[part], plain[part], part)
    assert looks.history["rates"]


def test_processes_of_accumulation_and_half_precision_are_tried_as_they_are():
    find = FindLearningRate(steps=40, confirm_steps=20)
    found(find, accumulate_grad_batches=2, precision="bf16-mixed")
    assert 0.01 < find.suggested < 1


def test_a_backbone_that_a_callback_freezes_is_not_moved_in_the_trial():
    moved = []

    class Backbone(Teacher):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(FEATURES, FEATURES)
            self.start = self.backbone.weight.detach().clone()

        def training_step(self, batch, batch_idx):
            moved.append(not torch.equal(self.backbone.weight, self.start))
            return super().training_step((self.backbone(batch[0]), batch[1]), batch_idx)

        def configure_optimizers(self):
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.SGD(trained, lr=self.lr)

    freeze = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
    find = finder()
    trainer = quiet_trainer(find, freeze, max_epochs=2)
    trainer.fit(Backbone())
    assert moved
    assert not any(moved[:-8])
    head, backbone = trainer.optimizers[0].param_groups
    assert head["lr"] == pytest.approx(find.suggested)
    assert 0 < backbone["lr"] < head["lr"]


# ---- when ---------------------------------------------------------------------------------------


def test_a_run_that_goes_on_keeps_the_rate_of_its_checkpoint(tmp_path):
    first, second = finder(), finder()
    keep = ModelCheckpoint(tmp_path, "kept", save_top_k=-1, every_n_train_steps=3)
    trainer = quiet_trainer(first, keep, max_steps=3, max_epochs=-1, enable_checkpointing=True)
    trainer.fit(Teacher())
    trainer = quiet_trainer(second, max_steps=5, max_epochs=-1)
    trainer.fit(Teacher(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert rate_of(trainer) == first.suggested == second.suggested
    assert second.history == first.history


def test_nothing_is_tried_in_a_fast_run():
    find = finder()
    trainer = found(find, fast_dev_run=True)
    assert rate_of(trainer) == 0.001
    assert find.history == {}


def test_every_fit_that_starts_afresh_is_tried():
    find = finder()
    found(find, Teacher(0.001))
    trainer = found(find, Teacher(0.01))
    assert find.history["own"] == 0.01
    assert rate_of(trainer) == pytest.approx(find.suggested)


# ---- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(("apply", "words"), [(True, "instead"), (False, "was found")])
def test_a_rate_above_where_it_diverges_is_warned_about(apply, words):
    with pytest.warns(StableLightningWarning, match=rf"of 50 lies above .* diverge; .*{words}"):
        trainer = found(finder(apply=apply), Teacher(50.0))
    assert (rate_of(trainer) < 1) is apply


def test_a_rate_below_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", StableLightningWarning)
        found(finder(apply=False), Teacher(0.1))


def test_one_line_says_what_was_chosen_and_why(caplog):
    with caplog.at_level("INFO"):
        found(finder())
    (line,) = [r.getMessage() for r in caplog.records if "FindLearningRate" in r.getMessage()]
    assert "was 0.001" in line
    assert "steps; the loss of the sweep fell at rates of" in line
    assert ", and diverged at" in line


def test_a_loss_that_nothing_moves_is_told():
    class Stuck(Teacher):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0.0 + 1.0

    with pytest.warns(StableLightningWarning, match="found no learning rate .* stays at 0.001"):
        trainer = found(finder(), Stuck())
    assert rate_of(trainer) == 0.001


def test_what_was_found_is_logged(tmp_path):
    find = finder()
    logger = CSVLogger(str(tmp_path))
    found(find, logger=logger)
    logger.save()
    header, first = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["learning_rate/suggested"]) == find.suggested
    assert float(row["learning_rate/diverged_at"]) == find.diverged_at


@pytest.mark.parametrize("required", [True, False])
def test_manual_optimization_is_refused_in_words(required):
    class Manual(Teacher):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return None

    expected = (
        pytest.raises(ModelError, match="optimizes by itself")
        if required
        else pytest.warns(StableLightningWarning, match="leaves the learning rate as it is")
    )
    with expected:
        found(FindLearningRate(required=required), Manual(), max_steps=-1, max_epochs=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lowest": 0.0}, "rates must rise from lowest > 0"),
        ({"lowest": 1.0, "highest": 0.1}, "rates must rise"),
        ({"steps": 5}, "steps must be a whole number >= 20"),
        ({"steps": 40.0}, "whole number"),
        ({"confirm_steps": -1}, "confirm_steps must be a whole number"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(RecipeError, match=words):
        FindLearningRate(**settings)


# ---- halving ------------------------------------------------------------------------------------


def test_a_rate_that_holds_is_taken_at_once():
    halve = HalveLearningRate(start=0.1)
    assert rate_of(found(halve)) == pytest.approx(0.1)
    assert halve.diverged_at is None


def test_a_rate_that_breaks_is_halved_until_it_holds():
    halve = HalveLearningRate(start=8.0)
    trainer = found(halve)
    tried = [run["rate"] for run in halve.history["runs"]]
    assert tried == [halve.suggested * 2**n for n in range(len(tried))]
    assert tried[-1] == 8.0
    assert halve.diverged_at == 2 * halve.suggested
    assert rate_of(trainer) == pytest.approx(halve.suggested)
    assert [run["stable"] for run in halve.history["runs"]] == [True] + [False] * (len(tried) - 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_never_finite_is_told(bad):
    class Broken(Teacher):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * bad

    halve = HalveLearningRate(halvings=2)
    with pytest.warns(StableLightningWarning, match="at every rate from 0.003 down to 0.00075"):
        trainer = found(halve, Broken())
    assert halve.suggested is None
    assert rate_of(trainer) == 0.001


def test_nothing_of_the_runs_is_left():
    halved = fitted(HalveLearningRate(start=0.03, steps=8))  # the rate that Everything has
    plain = fitted()
    for part in ("weights", "optimizer", "schedulers", "own", "logged", "random", "counters"):
        assert_same(halved[part], plain[part], part)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": 0}, "start must be a finite rate > 0"),
        ({"start": math.inf}, "start must be"),
        ({"start": "0.1"}, "start must be"),
        ({"steps": 0}, "steps must be a whole number >= 1"),
        ({"halvings": 0}, "halvings must be"),
    ],
)
def test_settings_of_halving_out_of_range(settings, words):
    with pytest.raises(RecipeError, match=words):
        HalveLearningRate(**settings)


# ---- the search among short runs ----------------------------------------------------------------


class Curve:
    """Stands for a rehearsal: every run ends at a loss that its rate gives."""

    def __init__(self, end) -> None:
        self.end = end
        self.tried: list[float] = []

    def run(self, rates, *, until=lambda losses: False):
        rates = list(rates)
        self.tried.append(rates[0])
        last = self.end(rates[0]) if rates[0] else 2.0
        losses = [2.0 + (last - 2.0) * n / len(rates) for n in range(1, len(rates) + 1)]
        return list(zip(rates, losses, strict=True))


def bowl(best: float):
    return lambda rate: 1.0 + 0.05 * abs(math.log(rate / best))


@pytest.mark.parametrize("guess", [0.001, 0.01, 0.1, 1.0])
def test_the_search_walks_to_the_best(guess):
    trials = Trials(Curve(bowl(0.03)), steps=30)
    assert 0.03 / 3 < trials.around(guess, below=None) < 0.03 * 3


def test_the_search_stays_below_what_is_known_to_break():
    curve = Curve(bowl(100.0))
    assert Trials(curve, steps=30).around(0.01, below=0.05) == pytest.approx(0.03)
    assert max(curve.tried) < 0.05


def test_of_runs_that_are_as_good_the_smallest_rate_is_taken():
    assert Trials(Curve(lambda rate: 1.0), steps=30).around(0.3, below=None) <= 0.1


def test_the_search_ends():
    curve = Curve(lambda rate: 3.0)
    assert Trials(curve, steps=30).around(0.3, below=None) is None
    assert len(curve.tried) <= 10


def test_everything_of_a_module_survives_a_real_search():
    find = FindLearningRate(lowest=1e-5, steps=40, confirm_steps=20, apply=False)
    after = fitted(find, make=lambda: Everything(optimizer="momentum"))
    without = fitted(make=lambda: Everything(optimizer="momentum"))
    for part in ("weights", "optimizer", "own", "logged", "random"):
        assert_same(after[part], without[part], part)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ((0.08, 0.04), "as good as the best of 2 runs of 100 steps"),  # within 2% of the fall
        ((0.5, 0.04), "the best of 2 runs of 100 steps"),
    ],
)
def test_a_smaller_rate_than_the_best_is_not_called_the_best(scores, words):
    trials = Trials.__new__(Trials)
    trials._steps, trials._level = 100, 2.1
    trials.runs = [Run(rate, [], score) for rate, score in zip((0.01, 0.03), scores, strict=True)]
    found = trials._as_good(trials.runs[1])
    assert (found, trials.words) == (0.01 if "as good" in words else 0.03, words)
