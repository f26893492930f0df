"""Monitored training: numbers against plain ones, in every kind of training; alarms; resuming."""

import csv
import json
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import MonitorSignals
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.report.wandb import RunLogger
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Seeded, weights
from tests.report.offline import read_offline_run

STEPS = 12
LAYERS = ("net.0", "net.2")


class Classifier(L.LightningModule):
    """Two layers; keeps what a plain script would have measured."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.plain: list[dict[str, float]] = []
        self.start = [p.detach().clone() for p in self.parameters()]

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_before_optimizer_step(self, optimizer):
        norms = {}
        for name in LAYERS:
            layer = self.get_submodule(name)
            gradients = [layer.weight.grad.ravel(), layer.bias.grad.ravel()]
            norms[f"grad_norm/{name}"] = torch.cat(gradients).norm().item()
        norms["grad_norm"] = sum(n**2 for n in norms.values()) ** 0.5
        for name in LAYERS:  # what SGD is going to do
            weight = self.get_submodule(name).weight
            norms[f"update_ratio/{name}"] = (self.lr * weight.grad.norm() / weight.norm()).item()
        self.plain.append(norms)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(8 * STEPS, 4, generator=generator)
        y = torch.randint(0, 3, (8 * STEPS,), generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=8)


def fitted(module, *callbacks, **settings):
    settings.setdefault("max_epochs", 1)
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module)
    return trainer


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """By step, what a CSV logger wrote of the monitor."""
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        values = {k: float(v) for k, v in row.items() if k.startswith("monitor/") and v}
        if values:
            assert int(row["step"]) not in found
            found[int(row["step"])] = values
    return found


def monitored(module, tmp_path, monitor=None, **settings):
    """Train with a CSV logger, and give what it wrote."""
    logger = CSVLogger(str(tmp_path), name="log")
    fitted(module, monitor or MonitorSignals(every_n_steps=5), logger=logger, **settings)
    return logged(tmp_path)


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"every_n_steps": 0},
        {"every_n_steps": 2.5},
        {"window": 0},
        {"dead_share": 0},
        {"dead_share": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        MonitorSignals(**settings)


def test_sharded_weights_are_refused_in_words():
    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(RecipeError, match="whole weights"):
        MonitorSignals().setup(trainer, Classifier(), "fit")


# ---- numbers ------------------------------------------------------------------------------------


def test_numbers_are_those_of_a_plain_script(tmp_path):
    model = Classifier()
    rows = monitored(model, tmp_path)
    assert sorted(rows) == [0, 1, 2, 3, 5, 10]
    for step, row in rows.items():
        for name, value in model.plain[step].items():
            assert row[f"monitor/{name}"] == pytest.approx(value, rel=1e-4)


def test_distance_is_from_the_start(tmp_path):
    model = Classifier()
    rows = monitored(model, tmp_path, max_epochs=3, limit_train_batches=1)
    assert sorted(rows) == [0, 1, 2]
    for name, start in zip(LAYERS, model.start[::2], strict=True):
        weight = model.get_submodule(name).weight.detach()
        expected = ((weight - start).norm() / start.norm()).item()
        assert rows[2][f"monitor/distance/{name}"] == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_starts_at_zero_has_a_finite_distance(tmp_path):
    model = Classifier()
    nn.init.zeros_(model.net[2].weight)
    rows = monitored(model, tmp_path, limit_train_batches=1)
    assert rows[0]["monitor/distance/net.2"] == pytest.approx(1.0)


def test_activations_are_those_of_the_batch(tmp_path):
    model = Classifier(lr=0.0)
    rows = monitored(model, tmp_path, limit_train_batches=2)
    batches = list(model.train_dataloader())[:2]
    for step, (x, _) in enumerate(batches):
        hidden = model.net[:2](x).detach()
        seen = {
            "activation_mean": hidden.mean(),
            "activation_std": hidden.var(0, False).mean() ** 0.5,
        }
        for name, value in seen.items():
            assert rows[step][f"monitor/{name}/net.0"] == pytest.approx(value.item(), rel=1e-4)


def test_nothing_is_copied_to_the_cpu_number_by_number(monkeypatch):
    """Each number of each layer on its own would be a wait for the device each."""
    reads = []
    for depth in (2, 20):
        count = 0

        class Counts(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if batch_idx:  # at first it looks at every function, on the CPU
                    return
                for name in ("tolist", "item", "__float__", "__bool__"):
                    monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))

        def counting(original):
            def counted(tensor, *arguments):
                nonlocal count
                count += 1
                return original(tensor, *arguments)

            return counted

        model = Classifier()
        model.on_before_optimizer_step = lambda optimizer: None
        middle = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.ReLU())]
        model.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *middle, nn.Linear(8, 3))
        fitted(model, MonitorSignals(every_n_steps=2), Counts())
        monkeypatch.undo()
        reads.append(count)
    assert 0 < reads[0] == reads[1]


# ---- kinds of training --------------------------------------------------------------------------


def test_training_is_the_same_to_the_bit():
    for settings in ({}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}):
        outcomes = []
        for callbacks in ([], [MonitorSignals(every_n_steps=2)]):
            torch.manual_seed(0)
            model = Seeded()
            fitted(model, *callbacks, max_epochs=2, **settings)
            outcomes.append([*weights(model), torch.get_rng_state()])
        assert all(map(torch.equal, *outcomes))


def test_accumulated_gradients(tmp_path):
    model = Classifier()
    rows = monitored(model, tmp_path, accumulate_grad_batches=3)
    assert sorted(rows) == [0, 1, 2, 3]
    for step, row in rows.items():
        for name, value in model.plain[step].items():
            assert row[f"monitor/{name}"] == pytest.approx(value, rel=1e-4)


def test_activations_of_a_step_are_those_of_all_its_batches(tmp_path):
    model = Classifier(lr=0.0)
    rows = monitored(model, tmp_path, accumulate_grad_batches=3)
    x = torch.cat([x for x, _ in list(model.train_dataloader())[3:6]])
    expected = model.net[:2](x).mean().item()
    assert rows[1]["monitor/activation_mean/net.0"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled(tmp_path, fused):
    class Adam(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=fused)

    found = []
    for number, scale in enumerate((1.0, 1024.0)):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        rows = monitored(Adam(), tmp_path / str(number), plugins=[plugin])
        found.append({key: value for key, value in rows[5].items() if "grad_norm" in key})
    assert found[0].keys() == found[1].keys()
    assert list(found[0].values()) == pytest.approx(list(found[1].values()), rel=0.02)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_of_the_scaler_is_no_alarm(tmp_path, fused):
    class Adam(Classifier):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3, fused=fused)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)  # float16 ends at 2^16
    monitor = MonitorSignals(every_n_steps=5)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    rows = monitored(Adam(), tmp_path, monitor, plugins=[plugin])
    assert scaler.get_scale() < 2.0**24
    assert monitor.alarms == []
    norms = [v for row in rows.values() for k, v in row.items() if "grad_norm" in k]
    assert norms
    assert all(map(torch.isfinite, map(torch.tensor, norms)))


class Adversaries(L.LightningModule):
    """Two optimizers by hand: the second steps in every third batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norms: dict[str, dict[int, float]] = {"first": {}, "second": {}}

    def training_step(self, batch, batch_idx):
        x, _ = batch
        for number, (name, optimizer) in enumerate(zip(self.norms, self.optimizers(), strict=True)):
            if number == 1 and batch_idx % 3 != 2:
                continue
            optimizer.zero_grad()
            self.manual_backward(self.second(self.first(x).tanh()).pow(2).mean())
            parameters = [p.grad.ravel() for p in getattr(self, name).parameters()]
            self.norms[name][batch_idx] = torch.cat(parameters).norm().item()
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.first, self.second)]

    train_dataloader = Classifier.train_dataloader


def test_each_optimizer_is_measured_at_its_own_step(tmp_path):
    model = Adversaries()
    rows = monitored(model, tmp_path, MonitorSignals(every_n_steps=7))
    seen = {name: {} for name in model.norms}
    for step, row in rows.items():
        for name in seen:
            if f"monitor/grad_norm/{name}" in row:
                seen[name][step] = row[f"monitor/grad_norm/{name}"]
                assert row[f"monitor/update_ratio/{name}"] > 0
    assert sorted(seen["first"]) == [0, 1, 2, 3, 7]
    assert sorted(seen["second"]) == [2, 5, 8]
    for name, norms in seen.items():
        for step, norm in norms.items():
            assert norm == pytest.approx(model.norms[name][step], rel=1e-4)


def test_an_optimizer_that_runs_backward_itself():
    class Newton(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    monitor = MonitorSignals(every_n_steps=5)
    model = Newton()
    fitted(model, monitor)
    assert monitor.history.steps == [0, 1, 2, 3, 5, 10]
    assert monitor.history.table("grad_norm").isfinite().all()


def test_frozen_layers_are_left_out(tmp_path):
    model = Classifier()
    model.on_before_optimizer_step = lambda optimizer: None
    model.net[0].requires_grad_(False)
    rows = monitored(model, tmp_path)
    keys = {key for row in rows.values() for key in row}
    assert "monitor/grad_norm/net.2" in keys
    assert not {k for k in keys if k.endswith("/net.0") and "activation" not in k} - {
        "monitor/dead/net.0",
        "monitor/died/net.0",
        "monitor/revived/net.0",
    }


def test_a_compiled_model_is_measured_without_activations(tmp_path):
    model = Classifier()
    model.net = torch.compile(model.net, backend="eager")
    model.on_before_optimizer_step = lambda optimizer: None
    with pytest.warns(StableLightningWarning, match=r"torch\.compile"):
        rows = monitored(model, tmp_path)
    names = {key.split("/")[1] for row in rows.values() for key in row}
    assert names == {"grad_norm", "update_ratio", "distance"}


def test_checkpointed_activations_are_counted_once(tmp_path):
    class Recomputed(Classifier):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    found = []
    for number, kind in enumerate((Classifier, Recomputed)):
        torch.manual_seed(0)
        monitor = MonitorSignals(window=10_000)
        monitored(kind(), tmp_path / str(number), monitor)
        found.append(monitor.state_dict()["monitor"]["units"]["rows"].tolist())
    assert found[0] == found[1] == [4 * 8, 4 * 8]


def test_hooks_are_there_only_while_they_measure():
    seen = {}

    class Looks(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            hooks = [len(m._forward_hooks) for m in pl_module.modules()]
            seen[trainer.global_step] = sum(hooks)

        def on_train_batch_end(self, trainer, pl_module, *_):
            assert not any(m._forward_hooks for m in pl_module.modules())
            assert not any(o._optimizer_step_post_hooks for o in trainer.optimizers)

    fitted(Classifier(), MonitorSignals(every_n_steps=6), Looks())
    assert [step for step, hooks in seen.items() if hooks] == [0, 1, 2, 3, 6]


def test_no_hook_stays_after_an_epoch_that_is_cut_short():
    class Skips(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

        def on_validation_start(self):
            assert not any(m._forward_hooks for m in self.modules())

    model = Skips()
    fitted(model, MonitorSignals(1))
    assert not any(m._forward_hooks for m in model.modules())


def test_a_step_without_a_loss_is_not_measured_and_the_next_one_is():
    class Leaves(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 2 else loss

        def on_before_optimizer_step(self, optimizer):
            pass

    monitor = MonitorSignals(1)
    fitted(Leaves(), monitor)
    assert len(monitor.history.steps) > 5


# ---- units --------------------------------------------------------------------------------------


class Kills(L.Callback):
    """Pushes half of the hidden units below zero at one step, and back at another."""

    def __init__(self, at: int, back: int = -1) -> None:
        self.at, self.back = at, back

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        bias = pl_module.net[0].bias
        with torch.no_grad():
            if batch_idx == self.at:
                bias[:4] -= 100
            if batch_idx == self.back:
                bias[:4] = 100


def test_units_that_die_in_training_are_told_from_those_that_never_lived():
    for at, cause in ((0, "initialization"), (5, "learning rate")):
        monitor = MonitorSignals(every_n_steps=1, window=16)
        with pytest.warns(StableLightningWarning, match=cause):
            fitted(Classifier(), Kills(at), monitor)
        (alarm,) = monitor.alarms
        assert (alarm.code, alarm.layer) == ("dead-units", "net.0")
        assert alarm.evidence["died"] == (0.5 if at else 0.0)


def test_units_that_come_back():
    monitor = MonitorSignals(every_n_steps=1, window=8, dead_share=1.0)
    fitted(Classifier(lr=0.0), Kills(0, back=6), monitor)
    dead, revived = (monitor.history.table(name)[:, 0] for name in ("dead", "revived"))
    assert dead.isnan().tolist() == [True] * 3 + [False] * 9
    assert dead[3:6].tolist() == [0.5] * 3
    assert revived[3:6].tolist() == [0.0] * 3
    assert revived[7:].tolist() == [0.5] * 5


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net[2](F.relu(net[0](x))),
        lambda net, x: net[2](net[0](x).clamp(min=0)),
    ],
    ids=["functional", "by hand"],
)
def test_functions_that_are_no_modules_are_followed(forward):
    class Functional(Classifier):
        def forward(self, x):
            return forward(self.net, x)

    monitor = MonitorSignals(every_n_steps=1, window=8, dead_share=1.0)
    fitted(Functional(lr=0.0), Kills(0), monitor)
    assert monitor.history.table("dead")[-1, 0].item() == 0.5


def test_what_cannot_be_seen_is_not_guessed():
    """A functional ReLU of a sum: what the layer puts out is not what the ReLU is given."""

    class Residual(Classifier):
        def forward(self, x):
            return self.net[2](F.relu(self.net[0](x) + x.repeat(1, 2) * 200))

    monitor = MonitorSignals(every_n_steps=1, window=8, dead_share=1.0)
    fitted(Residual(lr=0.0), Kills(0), monitor)
    assert monitor.history.table("dead").isnan().all()
    assert monitor.history.table("activation_std")[:, 0].isfinite().all()


def test_a_norm_before_the_function_is_taken_into_account():
    class Normed(Classifier):
        def __init__(self) -> None:
            super().__init__(lr=0.0)
            self.norm = nn.BatchNorm1d(8)
            nn.init.constant_(self.norm.bias[:2], -50.0)

        def forward(self, x):
            return self.net[2](F.relu(self.norm(self.net[0](x))))

    monitor = MonitorSignals(every_n_steps=1, window=8)
    fitted(Normed(), monitor)
    assert monitor.history.table("dead")[-1, 0].item() == 0.25


def test_modules_are_guessed_where_no_forward_can_be_watched():
    class NoForward(Classifier):
        def forward(self, x):
            raise NotImplementedError

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    monitor = MonitorSignals(every_n_steps=1, window=8, dead_share=1.0)
    fitted(NoForward(lr=0.0), Kills(0), monitor)
    assert monitor.history.table("dead")[-1].tolist()[0] == 0.5
    assert monitor.history.table("dead")[-1, 1].isnan()


def test_saturation_is_an_alarm_in_hidden_layers_only():
    class Bounded(Classifier):
        def __init__(self) -> None:
            super().__init__(lr=0.0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3), nn.Sigmoid())
            for layer in (self.net[0], self.net[2]):
                nn.init.normal_(layer.weight, std=100.0)

    monitor = MonitorSignals(every_n_steps=1)
    with pytest.warns(StableLightningWarning, match="saturated"):
        fitted(Bounded(), monitor)
    assert {(a.code, a.layer) for a in monitor.alarms} == {("saturated-units", "net.0")}


def test_a_layer_that_no_optimizer_holds_is_not_learning():
    class Forgotten(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

    monitor = MonitorSignals(every_n_steps=1)
    with pytest.warns(StableLightningWarning, match=r"net\.0 has moved"):
        fitted(Forgotten(), monitor)
    (alarm,) = monitor.alarms
    assert (alarm.code, alarm.layer, alarm.evidence["distance"]) == (
        "layer-not-learning",
        "net.0",
        0.0,
    )


def test_a_gradient_that_is_not_finite_is_an_alarm():
    class Divides(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (torch.inf if batch_idx == 5 else 1)

    monitor = MonitorSignals(every_n_steps=5)
    with pytest.warns(StableLightningWarning, match="not finite"):
        fitted(Divides(), monitor)
    assert (monitor.alarms[0].code, monitor.alarms[0].step) == ("non-finite-gradient", 5)


def test_a_healthy_training_raises_nothing():
    for kind in (Classifier, Seeded, Adversaries):
        monitor = MonitorSignals(every_n_steps=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", StableLightningWarning)
            fitted(kind(), monitor, max_epochs=3)
        assert monitor.alarms == []


# ---- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 5, 6, 9])
def test_a_resumed_run_logs_what_the_unbroken_one_does(tmp_path, step):
    """Also where the checkpoint lies between a measurement and the reading of it (5, 9)."""
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    found = []
    for ckpt_path in (None, tmp_path / f"step={step}.ckpt"):
        folder = tmp_path / ("resumed" if ckpt_path else "unbroken")
        monitor = MonitorSignals(every_n_steps=4, window=8)
        logger = CSVLogger(str(folder), name="log")
        torch.manual_seed(0)
        callbacks = [monitor] if ckpt_path else [monitor, every]
        trainer = quiet_trainer(
            *callbacks, logger=logger, max_epochs=2, enable_checkpointing=not ckpt_path
        )
        trainer.fit(Seeded(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        found.append(logged(folder))
    unbroken, resumed = found
    assert max(unbroken) == 8
    late = {s: row for s, row in unbroken.items() if s >= step - 1 and s in resumed}
    assert resumed == late
    assert {s for s in unbroken if s >= step} <= set(resumed)


def test_a_second_fit_with_another_trainer_begins_anew():
    monitor = MonitorSignals(every_n_steps=5)
    for _ in range(2):
        fitted(Classifier(), monitor)
        assert monitor.history.steps == [0, 1, 2, 3, 5, 10]


def test_the_state_of_another_model_is_forgotten_in_words(tmp_path):
    first = MonitorSignals(every_n_steps=5)
    fitted(Classifier(), first)
    second = MonitorSignals(every_n_steps=5)

    class Loads(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            second.load_state_dict(first.state_dict())

    with pytest.warns(StableLightningWarning, match="begins anew"):
        fitted(Seeded(), second, Loads())
    assert second.history.layers == ["net.0", "net.4"]


def test_nothing_is_measured_in_a_barebones_trainer():
    monitor = MonitorSignals(every_n_steps=1)
    fitted(Classifier(), monitor, barebones=True)
    assert monitor.history.steps == []


def test_alarms_and_the_picture_are_in_the_wandb_run(tmp_path):
    logger = RunLogger("monitor", mode="offline", save_dir=tmp_path)
    with pytest.warns(StableLightningWarning, match="learning rate"):
        fitted(Classifier(), Kills(5), MonitorSignals(1, window=16), logger=logger)
    logger.finish()
    run = read_offline_run(tmp_path)
    assert {"monitor/grad_norm/net.0", "monitor/died/net.0", "trainer/global_step"} <= run.metrics
    (table,) = tmp_path.rglob("alarms_*.table.json")
    cells = json.loads(table.read_text())["data"]
    assert [cell[1:3] for cell in cells] == [["dead-units", "net.0"]]
    assert list(tmp_path.rglob("grad_norm_by_layer_*.png"))
