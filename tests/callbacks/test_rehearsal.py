"""What trial runs leave behind: nothing, to the bit; and what they are: training."""

import random
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from stablelightning.callbacks import (
    ClipGradientNorm,
    GuardTraining,
    MonitorSignals,
    RegularizeL1,
)
from stablelightning.callbacks.rehearsal import Rehearsal
from stablelightning.errors import DataError, ModelError
from tests.callbacks.modules import CLASSES, FEATURES, data, quiet_trainer

STEPS = 12


class Rehearse(L.Callback):
    """Makes trial runs, and lets training go on."""

    def __init__(self, rates=None, runs: int = 2) -> None:
        self.rates = rates or [10 ** (-3 + 0.3 * n) for n in range(STEPS)]
        self.runs = runs
        self.seen: list[list[tuple[float, float]]] = []

    def on_train_start(self, trainer, pl_module):
        rehearsal = Rehearsal(trainer, pl_module)
        self.rate = rehearsal.rate
        self.seen = [rehearsal.run(self.rates) for _ in range(self.runs)]


class Draws(Dataset):
    """Noise from three generators on every row."""

    def __init__(self) -> None:
        self.rows = data(32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        x, y = self.rows[place]
        return x + 0.1 * torch.randn(()) + 0.1 * random.random() + 0.1 * float(np.random.rand()), y


class Everything(L.LightningModule):
    """Dropout, batch norm, a metric, lists and counters of its own, and two groups."""

    def __init__(self, *, optimizer: str = "adam", workers: int = 0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(8, CLASSES)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.kind, self.workers = optimizer, workers
        self.steps, self.losses, self.named = 0, [], {"counts": torch.zeros(2)}

    def on_train_epoch_start(self) -> None:
        self.running = torch.zeros(())  # without this hook, the step fails

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        out = self.head(self.net(x))
        loss = F.cross_entropy(out, y)
        self.steps += 1
        self.losses.append(loss.item())
        self.named["counts"] += 1
        self.running = self.running + loss.detach()
        self.accuracy(out, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        if self.logger is not None:
            self.logger.log_metrics({"past_self_log": float(loss)}, step=self.global_step)
        return loss

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net.parameters(), "lr": 0.01}, {"params": self.head.parameters()}]
        optimizer = {
            "adam": lambda: torch.optim.Adam(groups, lr=0.03),
            "fused": lambda: torch.optim.Adam(groups, lr=0.03, fused=True),
            "momentum": lambda: torch.optim.SGD(groups, lr=0.03, momentum=0.9),
            "adagrad": lambda: torch.optim.Adagrad(groups, lr=0.03),
            "lbfgs": lambda: torch.optim.LBFGS(self.parameters(), lr=0.03),
        }[self.kind]()
        if self.kind == "lbfgs":
            return optimizer
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [0.01, 0.03],
            total_steps=50,
            cycle_momentum=self.kind in ("adam", "momentum"),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def train_dataloader(self) -> DataLoader:
        own = torch.Generator().manual_seed(3)
        return DataLoader(
            Draws(),
            batch_size=8,
            shuffle=True,
            generator=own,
            num_workers=self.workers,
            persistent_workers=bool(self.workers),
        )


class Hooked(L.Callback):
    """Counts forwards through hooks: one whose handle it keeps, one bound to it, one closure."""

    def on_fit_start(self, trainer, pl_module):
        self.counts = [0, 0, 0]

        def plain(*_):
            counts[0] += 1

        def closure(*_):
            self.counts[2] += 1

        counts = self.counts
        self.handle = pl_module.head.register_forward_hook(plain)
        pl_module.head.register_forward_hook(self.bound)
        pl_module.net.register_forward_pre_hook(closure)

    def bound(self, *_):
        self.counts[1] += 1

    def state_dict(self):
        return {"counts": list(self.counts)}


def fitted(*callbacks: L.Callback, make: Any = Everything, **settings: Any) -> dict[str, Any]:
    """Everything that a run leaves, in plain types and tensors."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = make()
    trainer = quiet_trainer(*callbacks, max_epochs=2, **settings)
    trainer.fit(model)
    random_now = torch.rand(2), random.random(), float(np.random.rand())
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        "own": [model.steps, model.losses, model.named, model.running],
        "logged": dict(trainer.callback_metrics),
        "random": random_now,
        "counters": [trainer.global_step, trainer.fit_loop.state_dict()],
        "scaler": None if scaler is None else scaler.state_dict(),
        "callbacks": {c.state_key: c.state_dict() for c in trainer.callbacks},
        "trainer": trainer,
    }


def assert_same(a: Any, b: Any, place: str = "") -> None:
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_same(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for n, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{place}/{n}")
    elif isinstance(a, int | float | str | bool | None):
        assert a == b or (a != a and b != b), place


def compare(*others: Any, make=Everything, **settings: Any) -> Rehearse:
    """A run with trial runs before it against one without."""
    made = [[callback() for callback in others] for _ in range(2)]
    rehearse = Rehearse()
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    without = fitted(*made[0], make=make, **settings)
    with_it = fitted(*made[1][:1], rehearse, *made[1][1:], make=make, **settings)
    del without["trainer"], with_it["trainer"]
    with_it["callbacks"].pop(rehearse.state_key)
    assert_same(with_it, without)
    return rehearse


# ---- nothing is left ----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "fused", "momentum", "adagrad", "lbfgs"])
def test_every_optimizer_is_given_back_to_the_bit(optimizer):
    compare(make=lambda: Everything(optimizer=optimizer))


@pytest.mark.parametrize("accumulated", [2, 3])
def test_accumulated_steps(accumulated):
    rehearse = compare(accumulate_grad_batches=accumulated)
    assert len(rehearse.seen[0]) == STEPS


def test_trainer_settings():
    compare(gradient_clip_val=0.1, precision="bf16-mixed", limit_train_batches=3)


def test_a_loss_scaler_is_given_back():
    def half():
        return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))

    made = [fitted(*c, plugins=half()) for c in ([], [Rehearse()])]
    assert made[1]["scaler"]["scale"] == made[0]["scaler"]["scale"]
    for part in ("weights", "optimizer", "scaler"):
        assert_same(made[1][part], made[0][part], part)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_give_the_same_batches_afterwards(workers):
    compare(make=lambda: Everything(workers=workers))


def test_other_callbacks_see_nothing(tmp_path):
    compare(
        Hooked,
        lambda: EMAWeightAveraging(decay=0.9),
        lambda: MonitorSignals(every_n_steps=2),
        num_sanity_val_steps=0,
    )


def test_those_that_act_on_a_step_see_nothing():
    compare(GuardTraining, ClipGradientNorm, lambda: RegularizeL1(strength=0.1))


def test_nothing_is_logged(tmp_path):
    rows = []
    for name, callbacks in (("without", []), ("with", [Rehearse()])):
        logger = CSVLogger(str(tmp_path), name=name)
        fitted(LearningRateMonitor(), *callbacks, logger=logger, log_every_n_steps=1)
        rows.append((tmp_path / name / "version_0" / "metrics.csv").read_text())
    assert rows[0] == rows[1]


def test_everything_is_given_back_after_a_failure():
    class Fails(Everything):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == 5:
                raise RuntimeError("broken on purpose")
            return loss

    class Catch(Rehearse):
        def on_train_start(self, trainer, pl_module):
            with pytest.raises(RuntimeError, match="broken on purpose"):
                super().on_train_start(trainer, pl_module)
            self.callbacks = list(trainer.callbacks)

    catch = Catch()
    after = fitted(catch, make=Fails, limit_train_batches=3)
    without = fitted(make=Fails, limit_train_batches=3)
    assert catch in catch.callbacks
    for part in ("weights", "optimizer", "own", "logged", "random"):
        assert_same(after[part], without[part], part)


# ---- it is training -----------------------------------------------------------------------------


def test_every_run_begins_at_the_same_place():
    rehearse = compare()
    assert rehearse.seen[0] == rehearse.seen[1]
    assert [rate for rate, _ in rehearse.seen[0]] == rehearse.rates


def test_a_run_is_what_training_at_these_rates_is():
    class Learns(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES)
            self.losses = []

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(loss.detach())
            return loss

        def train_dataloader(self):
            return DataLoader(data(), batch_size=4)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)

    rehearse, model = Rehearse([0.3] * 6, runs=1), Learns()
    quiet_trainer(rehearse, max_steps=6, max_epochs=-1).fit(model)
    assert [loss for _, loss in rehearse.seen[0]] == [float(loss) for loss in model.losses]


def test_the_rate_is_the_peak_of_the_group_that_has_the_largest():
    rehearse = compare()
    assert rehearse.rate == 0.03


def test_groups_keep_their_ratio_and_frozen_ones_stay():
    seen = []

    class Freezes(Everything):
        def __init__(self):
            super().__init__()
            self.net.requires_grad_(False)
            self.kept = self.net[0].weight.detach().clone()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
            assert torch.equal(self.net[0].weight, self.kept)

    rehearse = compare(make=Freezes)
    rates = seen[-2 * len(rehearse.rates) - 8 : -8]
    for (low, high), rate in zip(rates, rehearse.rates * 2, strict=True):
        assert high == pytest.approx(rate)
        assert low == pytest.approx(rate / 3)


def test_a_group_that_is_frozen_is_not_the_one_whose_rate_is_told():
    class FrozenHead(Everything):
        def __init__(self):
            super().__init__()
            self.head.requires_grad_(False)

    assert compare(make=FrozenHead).rate == 0.01


# ---- what cannot be tried, in words -------------------------------------------------------------


class Streams(IterableDataset):
    def __init__(self, restarts: bool) -> None:
        self.rows = (row for row in data(400)) if not restarts else list(data(400))

    def __iter__(self):
        yield from self.rows


class Refused(Everything):
    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why
        self.automatic_optimization = why != "manual"
        if why == "frozen":
            self.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        if self.why in ("manual", "frozen"):
            return None
        return super().training_step(batch, batch_idx)

    def optimizer_step(self, *arguments, **settings):
        super().optimizer_step(*arguments, **settings)
        if self.why == "rate":
            self.trainer.optimizers[0].param_groups[0]["lr"] = 0.5

    def train_dataloader(self):
        if self.why == "once":
            return DataLoader(Streams(restarts=False), batch_size=4)
        return super().train_dataloader()


@pytest.mark.parametrize(
    ("why", "error", "words"),
    [
        ("manual", ModelError, "optimizes by itself"),
        ("frozen", ModelError, "has none; unfreeze some"),
        ("rate", ModelError, "sets its own"),
        ("once", DataError, "can be read only once"),
    ],
)
def test_what_cannot_be_tried_is_refused(why, error, words):
    with pytest.raises(error, match=words):
        fitted(Rehearse(), make=lambda: Refused(why))


def test_a_stream_that_begins_anew_is_read():
    class Streaming(Everything):
        def train_dataloader(self):
            return DataLoader(Streams(restarts=True), batch_size=40)

    assert len(compare(make=Streaming).seen[0]) == STEPS


def test_steps_that_are_left_out_are_not_among_the_losses():
    class Skips(Everything):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 3 == 0 else loss

    assert len(compare(make=Skips).seen[0]) == STEPS - 4
