"""A choice is swapped in before there is an optimizer, and everything else is as it was."""

import copy
import csv
import random

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from stablelightning.callbacks import activation as room
from stablelightning.callbacks.activation import SelectActivation
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from stablelightning.module import StableModule
from tests.callbacks.modules import CLASSES, FEATURES, Plain, data, loader, quiet_trainer

QUICK = {"steps": 4, "seeds": 2, "finalists": 1}


class Watch(L.Callback):
    """What training begins with."""

    def on_train_start(self, trainer, pl_module):
        self.weights = copy.deepcopy(pl_module.state_dict())
        self.flags = [m.training for m in pl_module.modules()]
        self.generators = torch.get_rng_state(), random.getstate()
        groups = trainer.optimizers[0].param_groups
        self.optimized = [p for group in groups for p in group["params"]]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def set_by_hand(model):
    """Weights that nobody takes for fresh, and that therefore stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.fixture
def keep(monkeypatch):
    """Everything is measured, and what is there stays."""
    usual = room.select_activation

    def measured_and_kept(*args, **kwargs):
        ranking = usual(*args, **kwargs)
        ranking.chosen = ranking.incumbent
        return ranking

    monkeypatch.setattr(room, "select_activation", measured_and_kept)


@pytest.fixture
def no_race(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it races")

    monkeypatch.setattr(room, "select_activation", refuse)


# ---- the swap -----------------------------------------------------------------------------------


def test_a_race_leaves_no_trace(keep):
    runs = []
    for callbacks in ([], [SelectActivation(["relu", "elu"], **QUICK)]):
        torch.manual_seed(0)
        random.seed(0)
        model, watch = set_by_hand(Plain()), Watch()
        trainer = quiet_trainer(*callbacks, watch, max_epochs=2)
        shuffled = DataLoader(data(24), batch_size=4, shuffle=True)
        own = DataLoader(data(8), batch_size=4, shuffle=True, generator=torch.Generator())
        trainer.fit(model, shuffled, own)
        runs.append((watch, model.state_dict(), set(vars(model)) - {room._MARK}))
    (plain, end, names), (raced, other_end, other_names) = runs
    assert same(plain.weights, raced.weights)
    assert plain.flags == raced.flags
    assert torch.equal(plain.generators[0], raced.generators[0])
    assert plain.generators[1] == raced.generators[1]
    assert same(end, other_end)
    assert names == other_names


def test_the_winner_is_swapped_in_and_its_parameters_are_optimized(no_race):
    torch.manual_seed(0)
    model = Plain()
    before = copy.deepcopy(model.state_dict())
    select, watch = SelectActivation(["prelu"]), Watch()
    quiet_trainer(select, watch, max_epochs=1).fit(model, loader())
    assert isinstance(model.net[1], nn.PReLU)
    assert all(torch.equal(watch.weights[k], v) for k, v in before.items())
    assert any(p is model.net[1].weight for p in watch.optimized)
    assert model.net[1].weight.item() != 0.25
    assert (select.chosen, select.evidence) == ("prelu", {})


class Learns(Plain):
    """Eight layers of sigmoids, which learn nothing in so few steps, and a learnable target."""

    def __init__(self):
        super().__init__()
        width = 16
        layers = [nn.Linear(FEATURES, width), nn.Sigmoid()]
        for _ in range(5):
            layers += [nn.Linear(width, width), nn.Sigmoid()]
        self.net = nn.Sequential(*layers, nn.Linear(width, CLASSES))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self):
        x = torch.randn(256, FEATURES, generator=torch.Generator().manual_seed(0))
        return DataLoader(list(zip(x, (x[:, 0] > 0).long(), strict=True)), batch_size=32)


def test_a_better_activation_is_found():
    torch.manual_seed(0)
    model, select = Learns(), SelectActivation(["tanh", "elu"], steps=30, seeds=2)
    quiet_trainer(select, max_epochs=1).fit(model)
    assert select.chosen in ("tanh", "elu")
    assert select.evidence["incumbent"] == "sigmoid"
    assert not any(isinstance(m, nn.Sigmoid) for m in model.modules())
    assert select.evidence["rows"][0][0] == select.chosen


def test_a_second_fit_does_not_race_again(monkeypatch):
    model, select = Plain(), SelectActivation(["tanh", "relu"], **QUICK)
    trainer = quiet_trainer(select, max_epochs=1)
    trainer.fit(model, loader())
    chosen = select.chosen
    monkeypatch.setattr(room, "select_activation", None)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader())
    assert select.chosen == chosen


class Wide(Plain):
    def __init__(self):
        super().__init__()
        width = 128
        self.net = nn.Sequential(
            *(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, CLASSES),
        )


@pytest.mark.parametrize("first", [True, False], ids=["weights-first", "choice-first"])
@pytest.mark.parametrize(("name", "gain"), [("selu", 1.0), ("relu", 2**0.5), ("maxout", 1.0)])
def test_weights_follow_the_choice_in_either_order(first, name, gain):
    model, watch = Wide(), Watch()
    both = [InitializeWeights(), SelectActivation([name])]
    quiet_trainer(*(both if first else reversed(both)), watch, max_epochs=1).fit(model, loader())
    key = "net.2.layer.weight" if name == "maxout" else "net.2.weight"
    assert watch.weights[key].std() * 128**0.5 == pytest.approx(gain, rel=0.03)


@pytest.mark.parametrize("first", [True, False], ids=["weights-first", "choice-first"])
def test_every_candidate_races_with_weights_of_its_own(first, monkeypatch):
    scales = {}
    usual = room.select_activation

    def look(build, names, *args, **kwargs):
        for name in names:
            weight = build(name).module.net[2].weight
            scales[name] = float(weight.std() * 128**0.5)
        return usual(build, names, *args, **kwargs)

    monkeypatch.setattr(room, "select_activation", look)
    both = [InitializeWeights(), SelectActivation(["selu", "leaky_relu(0.5)"], **QUICK)]
    quiet_trainer(*(both if first else reversed(both)), max_epochs=1).fit(Wide(), loader())
    expected = {"relu": 2**0.5, "selu": 1.0, "leaky_relu(0.5)": (2 / 1.25) ** 0.5}
    assert scales == pytest.approx(expected, rel=0.03)


def test_loaded_weights_race_as_they_are():
    model = set_by_hand(Wide())
    before = copy.deepcopy(model.state_dict())
    watch = Watch()
    select = SelectActivation(["selu", "elu"], **QUICK)
    quiet_trainer(select, watch, max_epochs=1).fit(model, loader())
    assert same(watch.weights, before)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fresh_weights_train_as_they_raced(seeds):
    ends = []
    for wanted in ([], [InitializeWeights()]):
        torch.manual_seed(0)
        watch = Watch()
        select = SelectActivation(["relu", "elu"], steps=4, seeds=seeds, finalists=2)
        quiet_trainer(select, *wanted, watch, max_epochs=1).fit(Wide(), loader())
        ends.append(watch.weights)
    for weights in ends:  # drawn by the rules, whichever callback drew them
        assert not weights["net.0.bias"].any()
        assert weights["net.0.weight"].std() > 0.6 * (2 / weights["net.0.weight"].shape[1]) ** 0.5


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_all_race_in_the_precision_of_the_trainer(precision):
    select = SelectActivation(["relu", "elu"], steps=4, seeds=1, finalists=2)
    quiet_trainer(select, precision=precision, max_epochs=1).fit(Plain(), loader())
    assert all(row[2] is not None for row in select.evidence["rows"])


class MadeLater(Plain):
    """Makes its layers, and its data, in one of the hooks that come after callbacks' setup."""

    def __init__(self, hook):
        super().__init__()
        self.net = None
        self.rows = None
        setattr(self, hook, self._make)

    def _make(self, *_, **__):
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))
            self.rows = data(24)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.parametrize("candidates", [["prelu"], ["tanh", "relu"]])
def test_layers_that_are_made_later(hook, candidates):
    model, select = MadeLater(hook), SelectActivation(candidates, **QUICK)
    own = vars(model)[hook]
    quiet_trainer(select, max_epochs=1).fit(model)
    assert select.chosen is not None
    assert vars(model)[hook] == own
    if candidates == ["prelu"]:
        assert isinstance(model.net[1], nn.PReLU)


class AsksHowLong(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(steps))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def test_an_optimizer_that_asks_how_long_training_is(keep):
    ends = []
    for callbacks in ([], [SelectActivation(["relu", "elu"], **QUICK)]):
        torch.manual_seed(0)
        model = set_by_hand(AsksHowLong())
        shuffled = DataLoader(data(40), batch_size=4, shuffle=True)
        quiet_trainer(*callbacks, max_epochs=2).fit(model, shuffled)
        ends.append(model.state_dict())
    assert same(*ends)


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """Of a Plain in which PReLU won."""
    torch.manual_seed(0)
    model = Plain()
    trainer = quiet_trainer(SelectActivation(["prelu"]), max_epochs=1)
    trainer.fit(model, loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt", model


def test_a_resumed_run_does_not_race_but_has_the_winner(checkpoint, no_race):
    path, trained = checkpoint
    model, select, watch = Plain(), SelectActivation(["relu", "prelu"], **QUICK), Watch()
    trainer = quiet_trainer(select, watch, max_epochs=2)
    trainer.fit(model, loader(), ckpt_path=path)
    assert same(watch.weights, trained.state_dict())
    assert any(p is model.net[1].weight for p in watch.optimized)
    assert select.chosen == "prelu"
    assert "on_load_checkpoint" not in vars(model)


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_a_new_model_is_changed_before_its_weights_are_loaded(loop, checkpoint, no_race):
    path, trained = checkpoint
    model = Plain()
    model.predict_step = lambda batch, batch_idx: model(batch[0])
    getattr(quiet_trainer(SelectActivation()), loop)(model, loader(), ckpt_path=path)
    assert same(model.state_dict(), trained.state_dict())


def test_a_checkpoint_without_a_choice_changes_nothing(tmp_path, no_race):
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Plain(), loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    model = Plain()
    quiet_trainer(SelectActivation(), max_epochs=2).fit(
        model, loader(), ckpt_path=tmp_path / "plain.ckpt"
    )
    assert isinstance(model.net[1], nn.Tanh)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, CLASSES))


@pytest.mark.parametrize("name", ["selu", "prelu", "maxout"])
def test_a_stable_module_is_loaded_without_the_callback(name, tmp_path):
    model = StableModule(Net(), task="classification")
    trainer = quiet_trainer(SelectActivation([name]), max_epochs=1)
    trainer.fit(model, loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    again = StableModule.load_from_checkpoint(
        tmp_path / "some.ckpt", network=Net(), weights_only=False
    )
    x = torch.randn(5, FEATURES)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert repr(again.network) == repr(model.network)


class Bent(nn.Module):
    def forward(self, x):
        return torch.where(x > 0, x, 0.1 * x.exp() - 0.1)


class Unnamed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(FEATURES, 8), Bent(), nn.Linear(8, CLASSES))


def test_a_function_that_no_name_gives_away_is_swapped_again_before_loading(tmp_path):
    model = StableModule(Unnamed(), task="classification")
    trainer = quiet_trainer(SelectActivation(["prelu"]), max_epochs=1)
    trainer.fit(model, loader())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    again = StableModule(Unnamed(), task="classification")
    quiet_trainer(SelectActivation(["prelu"])).validate(
        again, loader(), ckpt_path=tmp_path / "some.ckpt", verbose=False
    )
    assert isinstance(again.network[1], nn.PReLU)
    assert same(again.state_dict(), model.state_dict())


# ---- what cannot be done ------------------------------------------------------------------------


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class NoActivation(Plain):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES)


@pytest.mark.parametrize(
    ("model", "told"),
    [(Manual, "optimizes by itself"), (NoActivation, "must be a hidden activation")],
)
def test_what_stands_against_a_choice(model, told):
    with pytest.raises(ModelError, match=told):
        quiet_trainer(SelectActivation(**QUICK), max_epochs=1).fit(model(), loader())
    aside = SelectActivation(required=False, **QUICK)
    trainer = quiet_trainer(aside, max_epochs=1)
    with pytest.warns(StableLightningWarning, match=f"leaves the model as it is: .*{told}"):
        trainer.fit(model(), loader())
    assert aside.chosen is None
    assert trainer.global_step > 0


def test_one_candidate_needs_no_race(no_race):
    model = Manual()
    quiet_trainer(SelectActivation(["relu"]), max_epochs=1).fit(model, loader())
    assert isinstance(model.net[1], nn.ReLU)


class FailsAlone(Plain):
    """Its step needs what only a running trainer has."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / float(bool(self.trainer.optimizers))

    def on_train_start(self):
        self.trained = True


class Raises(Plain):
    def training_step(self, batch, batch_idx):
        if not self.trainer.optimizers:
            raise RuntimeError("no trainer is running")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [FailsAlone, Raises])
def test_a_step_that_cannot_run_alone_changes_nothing(kind):
    model, select = kind(), SelectActivation(["relu"] * 2 + ["elu"], **QUICK)
    quiet_trainer(select, max_epochs=1).fit(model, loader())
    assert isinstance(model.net[1], nn.Tanh)
    assert select.chosen == "tanh"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"finalists": 1.5}, "finalists must be"),
        ({"seed": -1}, "seed must be"),
        ({"candidates": []}, "must be a list"),
        ({"candidates": "relu"}, "must be a list"),
        ({"candidates": ["rellu"]}, "did you mean 'relu'"),
    ],
)
def test_settings_out_of_range(settings, told):
    with pytest.raises(RecipeError, match=told):
        SelectActivation(**settings)


# ---- what is logged -----------------------------------------------------------------------------


def test_numbers_of_those_that_raced_are_logged_once(tmp_path):
    logger = CSVLogger(str(tmp_path))
    select = SelectActivation(["relu", "elu"], **QUICK)
    trainer = quiet_trainer(select, logger=logger, max_epochs=1, log_every_n_steps=1)
    trainer.fit(Plain(), loader())
    logger.save()
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    keys = {key for key in rows[0] if key.startswith("activation/")}
    raced = [row[0] for row in select.evidence["rows"] if row[5] is not None]
    assert len(raced) == 2
    for quantity in ("loss", "ms_per_step"):
        assert {f"activation/{quantity}/{name}" for name in raced} <= keys
    assert sum(bool(row["activation/loss/tanh"]) for row in rows) == 1


def test_the_evidence_is_told_in_the_run(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(room, "log_table", lambda _, name, *table: told.update({name: table}))
    monkeypatch.setattr(room, "log_figure", lambda _, name, figure: told.update({name: figure}))
    logger = CSVLogger(str(tmp_path))
    select = SelectActivation(["relu", "elu"], **QUICK)
    quiet_trainer(select, logger=logger, max_epochs=1).fit(Plain(), loader())
    columns, rows = told["activation/ranking"]
    assert len(rows) == 3
    assert len(columns) == len(rows[0])
    assert select.chosen in told["activation/race"].get_suptitle()
