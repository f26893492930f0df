"""Plans of fine-tuning around any LightningModule: what is open when, and what is left behind."""

import logging
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.callbacks.freeze import (
    FineTuneAll,
    ProbeThenTune,
    TrainHead,
    TrainLastGroups,
    UnfreezeGradually,
)
from stablelightning.callbacks.freeze_base import Position
from stablelightning.errors import (
    CheckpointError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from tests.callbacks.frozen import GROUPS, WIDTH, Deep, groups_of, made, moved, rows, state
from tests.callbacks.modules import quiet_trainer

PLANS = [UnfreezeGradually, TrainHead, TrainLastGroups, FineTuneAll, ProbeThenTune]


class Watch(L.Callback):
    """What every step moved, and which norms are in training mode in it."""

    def __init__(self) -> None:
        self.moved: list[list[str]] = []
        self.norms: list[list[bool]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.train()  # as some do by hand
        self.norms.append([pl_module.net[1].training, pl_module.net[4].training])
        self.before = state(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.moved.append(groups_of(moved(self.before, state(pl_module))))


def watched(plan: L.Callback, model: Any = None, **settings: Any) -> tuple[Any, Watch]:
    model = made() if model is None else model
    watch = Watch()
    quiet_trainer(plan, watch, **{"max_epochs": 4, **settings}).fit(model)
    return model, watch


# ---- what is open when -----------------------------------------------------------------------


def test_with_no_arguments_one_group_more_is_open_with_each_epoch():
    plan = UnfreezeGradually()
    before = state(made())
    model, watch = watched(plan, max_epochs=5)
    assert [group.name for group in plan.found] == GROUPS
    expected = [GROUPS[-count:] for count in (1, 2, 3, 4, 4) for _ in range(6)]
    assert watch.moved == expected
    assert watch.norms[::6] == [[False, False], [False, False], [False, True], *2 * [[True, True]]]
    assert [change["step"] for change in plan.history] == [0, 6, 12, 18]
    assert moved(before, state(model))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_by_steps_of_the_optimizer(accumulated):
    plan = UnfreezeGradually(every_n_steps=2)
    _, watch = watched(plan, max_epochs=2, accumulate_grad_batches=accumulated)
    assert [change["step"] for change in plan.history] == [0, 2, 4, 6][
        : 4 if accumulated == 1 else 3
    ]
    stepped = watch.moved[accumulated - 1 :: accumulated]
    opened = [GROUPS[-count:] for count in (1, 1, 2, 2, 3, 3, 4)]
    assert stepped[: len(opened)] == opened[: len(stepped)]


def test_several_epochs_between_openings():
    plan = UnfreezeGradually(every_n_epochs=2)
    watched(plan, max_epochs=5)
    assert [change["epoch"] for change in plan.history] == [0, 2, 4]


def test_the_head_alone():
    _, watch = watched(TrainHead(), max_epochs=2)
    assert watch.moved == 12 * [["net.10"]]


def test_the_last_groups():
    _, watch = watched(TrainLastGroups(3), max_epochs=1)
    assert watch.moved == 6 * [GROUPS[1:]]


def test_everything_and_all_but_the_head_slowly():
    plan = FineTuneAll(0.25)
    model = made()
    trainer = quiet_trainer(plan, max_epochs=1)
    trainer.fit(model)
    rates = {id(p): g["lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert {rates[id(p)] for p in model.net[10].parameters()} == {0.01}
    assert {rates[id(p)] for p in model.net[:10].parameters()} == {0.0025}


@pytest.mark.parametrize(("probe", "opened"), [(0.5, [0, 12]), (1, [0, 6]), (0.3, [0, 8])])
def test_a_probe_and_then_everything(probe, opened):
    plan = ProbeThenTune(probe)
    _, watch = watched(plan)
    assert [change["step"] for change in plan.history] == opened
    assert watch.moved[opened[1] - 1] == ["net.10"]
    assert watch.moved[opened[1]] == GROUPS


def test_a_probe_of_a_training_that_is_counted_in_steps():
    plan = ProbeThenTune(0.5)
    watched(plan, max_epochs=None, max_steps=8)
    assert [change["step"] for change in plan.history] == [0, 4]


@pytest.mark.parametrize("plan", [FineTuneAll, ProbeThenTune])
def test_rates_of_what_is_tuned(plan):
    assert plan().factors(3) == [0.1, 0.1, 1.0]
    assert plan(layer_decay=0.5).factors(3) == [0.25, 0.5, 1.0]
    assert plan(factor=0.5, layer_decay=0.5).factors(3) == [0.125, 0.25, 1.0]


def test_rates_as_written():
    trainer = quiet_trainer(UnfreezeGradually(rates=(0.001, 0.008)), max_epochs=1)
    trainer.fit(made())
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.001, 0.002, 0.004, 0.008])


def test_groups_of_the_users_own():
    plan = UnfreezeGradually(
        groups=[["net.0", "net.1", "net.3"], ["net.4", "net.7", "net.8"], "net.10"]
    )
    watched(plan)
    names = ["net.0, net.1, net.3", "net.4, net.7, net.8", "net.10"]
    assert [group.name for group in plan.found] == names
    assert [change["opened"] for change in plan.history] == [[name] for name in names[::-1]]


def test_what_was_opened_stays_open():
    class UpAndDown(UnfreezeGradually):
        def open_groups(self, position: Position) -> int:
            return (1, 3, 1, 2)[position.epoch]

    plan = UpAndDown()
    watched(plan)
    assert [change["open_groups"] for change in plan.history] == [1, 3]


# ---- any configure_optimizers ----------------------------------------------------------------


class Filters(Deep):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


class HeadOnly(Deep):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net[10].parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=24)]


class Several(Deep):
    def configure_optimizers(self) -> Any:
        weights = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


class FrozenByHand(Filters):
    def __init__(self) -> None:
        super().__init__()
        self.net[:10].requires_grad_(False)


class TwoOptimizers(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad(set_to_none=False)
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        body = torch.optim.SGD(self.net[3:5].parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        return [body, torch.optim.AdamW(self.net[10].parameters(), lr=0.01)]


class MadeInSetup(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.made, self.net = self.net, None

    def setup(self, stage: str) -> None:
        self.net = self.net or self.made
        self.made = None


class MadeInConfigureModel(MadeInSetup):
    def setup(self, stage: str) -> None:
        pass

    def configure_model(self) -> None:
        self.net = self.net or self.made
        self.made = None


class Lazy(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.net[7] = nn.LazyLinear(WIDTH)


@pytest.mark.parametrize(
    "kind",
    [
        Deep,
        Filters,
        HeadOnly,
        Several,
        FrozenByHand,
        TwoOptimizers,
        MadeInSetup,
        MadeInConfigureModel,
        Lazy,
    ],
)
def test_whatever_configures_the_optimizers(kind):
    plan = UnfreezeGradually()
    _, watch = watched(plan, made(kind))
    assert [group.name for group in plan.found] == GROUPS
    assert watch.moved == [GROUPS[-count:] for count in (1, 2, 3, 4) for _ in range(6)]


@pytest.mark.parametrize("kind", [HeadOnly, Several, FrozenByHand, TwoOptimizers])
def test_every_parameter_is_in_one_group_from_the_first_step(kind):
    seen = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            groups = [g for o in trainer.optimizers for g in o.param_groups]
            held = [id(p) for group in groups for p in group["params"]]
            seen.append(sorted(held) == sorted(id(p) for p in pl_module.parameters()))
            seen.append(len(groups))

        def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            seen.append(len([g for o in trainer.optimizers for g in o.param_groups]))

    quiet_trainer(UnfreezeGradually(), Look(), max_epochs=4).fit(made(kind))
    assert seen[0] is True
    assert seen[1] == seen[2]


def test_no_optimizer_at_all():
    class Alone(Deep):
        def configure_optimizers(self) -> None:
            return None

    before = state(made(Alone))
    model = made(Alone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(TrainHead(), max_epochs=1).fit(model)
    assert moved(before, state(model)) == set()


def test_data_that_can_be_read_only_once():
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([row for row in rows(8)])

    class Once(Deep):
        def train_dataloader(self) -> Any:
            return iter(DataLoader(Stream(), batch_size=4))

    plan = UnfreezeGradually(every_n_steps=1)
    quiet_trainer(plan, max_epochs=1).fit(made(Once))
    assert [group.name for group in plan.found] == GROUPS
    assert [change["step"] for change in plan.history] == [0, 1]


def test_a_model_that_multiplies_nothing_is_one_group():
    class Table(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.BatchNorm1d(4)

    plan = TrainHead()
    with pytest.warns(StableLightningWarning, match="a single group in Table"):
        quiet_trainer(plan, max_epochs=1).fit(made(Table))
    assert len(plan.found) == 1


# ---- what is left as it is -------------------------------------------------------------------


def test_flags_are_as_before():
    model = made(FrozenByHand)
    model.net[4].eval()
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    quiet_trainer(UnfreezeGradually(), max_epochs=3).fit(model)
    assert flags[0] == [p.requires_grad for p in model.parameters()]
    assert flags[1] == [m.training for m in model.modules()]
    assert not [m for m in model.modules() if "train" in vars(m)]


def test_what_is_excluded_is_neither_frozen_nor_opened():
    model = made()
    model.net[3].requires_grad_(False)
    plan = TrainHead(exclude=["net.0", "net.3", "net.8.weight"])
    _, watch = watched(plan, model, max_epochs=1)
    assert not [
        name for group in plan.found for name in group.parameters if name.startswith("net.3.")
    ]
    assert watch.moved == 6 * [["net.0", "net.7", "net.10"]]


def test_a_part_that_its_author_has_fixed_stays_fixed():
    class Adapted(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.net[3].weight.requires_grad = False  # its bias is trained

    before = state(made(Adapted))
    model, _ = watched(FineTuneAll(), made(Adapted), max_epochs=1)
    assert set(before) - moved(before, state(model)) == {"net.3.weight"}


def test_weights_that_stay_frozen_are_those_that_were_loaded():
    model = made()
    before = state(model)
    watched(TrainLastGroups(2), model)
    frozen = {name for name in before if int(name.split(".")[1]) < 7}
    assert not frozen & moved(before, state(model))


def test_weights_decay_and_momentum_move_nothing_that_is_frozen():
    class Decays(Deep):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

    _, watch = watched(TrainHead(), made(Decays), max_epochs=2)
    assert watch.moved == 12 * [["net.10"]]


def test_an_exception_leaves_the_module_as_it_was():
    class Breaks(Deep):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                raise RuntimeError("broken on purpose")
            return super().training_step(batch, batch_idx)

    model = made(Breaks)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        quiet_trainer(UnfreezeGradually()).fit(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not [m for m in model.modules() if "train" in vars(m)]


def test_checkpoints_have_their_usual_keys(tmp_path):
    trainer = quiet_trainer(UnfreezeGradually(), max_epochs=1)
    trainer.fit(made())
    trainer.save_checkpoint(tmp_path / "frozen.ckpt")
    kept = torch.load(tmp_path / "frozen.ckpt", weights_only=True)
    assert list(kept["state_dict"]) == list(made().state_dict())


def test_no_warning_of_norms_in_eval():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quiet_trainer(UnfreezeGradually(), max_epochs=1).fit(made())
    assert not [w for w in told if "eval mode" in str(w.message)]


# ---- compiled --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_learns_the_same(in_place):
    def compiled() -> Any:
        model = made()
        if in_place:
            model.net.compile(backend="eager")
        else:
            model.net = torch.compile(model.net, backend="eager")
        return model

    model, plan = compiled(), UnfreezeGradually()
    keys = list(model.state_dict())
    quiet_trainer(plan, max_epochs=3, limit_val_batches=0).fit(model)
    other = made()
    quiet_trainer(UnfreezeGradually(), max_epochs=3, limit_val_batches=0).fit(other)
    assert [change["step"] for change in plan.history] == [0, 6, 12]
    assert list(model.state_dict()) == keys
    values = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    for got, expected in values:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_module_that_is_compiled_as_a_whole_is_refused(in_place):
    model = made()
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with pytest.raises(ModelError, match="compiled as a whole"):
        quiet_trainer(UnfreezeGradually()).fit(model)


# ---- going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("step", [4, 6, 9, 12, 15])
def test_a_resumed_run_equals_the_unbroken_one(plan, step, tmp_path):
    class Saves(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "here.ckpt")

    whole, part = made(HeadOnly), made(HeadOnly)
    first, second = plan(), plan()
    quiet_trainer(first, Saves(), max_epochs=4).fit(whole)
    quiet_trainer(second, max_epochs=4).fit(part, ckpt_path=tmp_path / "here.ckpt")
    assert moved(state(whole), state(part)) == set()
    assert first.state_dict() == second.state_dict()


def test_what_was_open_stays_open_in_a_longer_training(tmp_path):
    trainer = quiet_trainer(ProbeThenTune(0.5), max_epochs=2)
    trainer.fit(made())
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    plan = ProbeThenTune(0.5)
    _, watch = made(), Watch()
    quiet_trainer(plan, watch, max_epochs=20, max_steps=13).fit(
        made(), ckpt_path=tmp_path / "here.ckpt"
    )
    assert watch.moved == [GROUPS]


def test_a_checkpoint_of_another_model_is_refused_in_words(tmp_path):
    trainer = quiet_trainer(
        UnfreezeGradually(
            groups=[["net.0", "net.1", "net.3", "net.4"], ["net.7", "net.8", "net.10"]]
        ),
        max_epochs=1,
    )
    trainer.fit(made())
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    with pytest.raises(CheckpointError, match="has others"):
        quiet_trainer(UnfreezeGradually(), max_epochs=2).fit(
            made(), ckpt_path=tmp_path / "here.ckpt"
        )


def test_lightnings_tuner_takes_back_what_it_tried(tmp_path):
    class Tuned(Deep):
        lr = 0.01

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    plan, model = UnfreezeGradually(), made(Tuned)
    finder = LearningRateFinder(num_training_steps=5, update_attr=False)
    watch = Watch()
    quiet_trainer(plan, finder, watch, max_epochs=2, default_root_dir=tmp_path).fit(model)
    assert watch.moved == 6 * [["net.10"]] + 6 * [GROUPS[2:]]


def test_two_optimizers_that_are_toggled():
    class Toggled(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                loss = Deep.training_step(self, batch, batch_idx)
                if loss.requires_grad:
                    self.manual_backward(loss)
                optimizer.step()
                self.untoggle_optimizer(optimizer)

    _, watch = watched(UnfreezeGradually(), made(Toggled))
    assert watch.moved[5::6] == [GROUPS[-count:] for count in (1, 2, 3, 4)]


def test_a_plan_tells_of_an_optimizer_without_anything_to_train(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        quiet_trainer(UnfreezeGradually(), max_epochs=1).fit(made(TwoOptimizers))
    assert any("optimizer 0 of 2 has nothing to train yet" in said for said in caplog.messages)


def test_a_second_fit_begins_anew():
    plan = UnfreezeGradually()
    for _ in range(2):
        quiet_trainer(plan, max_epochs=2).fit(made())
        assert [change["open_groups"] for change in plan.history] == [1, 2]


def test_testing_a_checkpoint_forgets_nothing_of_training(tmp_path):
    class Tested(Deep):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

        test_dataloader = Deep.val_dataloader

    plan, model = UnfreezeGradually(), made(Tested)
    trainer = quiet_trainer(plan, max_epochs=1)
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model)
    history = list(plan.history)
    trainer.test(model, ckpt_path=tmp_path / "early.ckpt", verbose=False)
    assert plan.history == history
    assert [change["open_groups"] for change in history] == [1, 2, 3]


# ---- what is told ----------------------------------------------------------------------------


def test_what_is_logged(tmp_path):
    logger = CSVLogger(str(tmp_path))
    quiet_trainer(UnfreezeGradually(), logger=logger, max_epochs=2, log_every_n_steps=6).fit(made())
    lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    numbers = [
        (float(row["unfreeze/open_groups"]), float(row["unfreeze/trainable_parameters"]))
        for row in rows
        if row["unfreeze/open_groups"]
    ]
    head, second = 3 * WIDTH + 3, WIDTH * WIDTH + WIDTH + 2 * WIDTH
    assert numbers == [(1, head), (2, head + second)]


def test_openings_are_told_in_a_line_each(caplog):
    with caplog.at_level(logging.INFO):
        quiet_trainer(UnfreezeGradually(), max_epochs=2).fit(made(HeadOnly))
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Unfreeze")]
    assert told[0].endswith("were in no optimizer, and are in a group of the head's from now on.")
    assert told[1:] == [
        "UnfreezeGradually: epoch 0, step 0: opened net.10; 1 of 4 groups are open.",
        "UnfreezeGradually: training will end with 2 of 4 groups open; to open all of them, train "
        "longer or open them sooner (every_n_steps=...).",
        "UnfreezeGradually: epoch 1, step 6: opened net.7; 2 of 4 groups are open.",
    ]


def test_what_was_frozen_by_hand_is_told_once(caplog):
    with caplog.at_level(logging.INFO):
        quiet_trainer(UnfreezeGradually(), max_epochs=2).fit(made(FrozenByHand))
    told = [r.getMessage() for r in caplog.records if "frozen by hand" in r.getMessage()]
    assert len(told) == 1
    assert "net.0.weight" in told[0]


# ---- bad settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "settings", "words"),
    [
        (UnfreezeGradually, {"every_n_epochs": 0}, "every_n_epochs must be a whole number >= 1"),
        (UnfreezeGradually, {"every_n_steps": 1.5}, "every_n_steps must be a whole number >= 1"),
        (UnfreezeGradually, {"every_n_epochs": 1, "every_n_steps": 1}, "by epochs or by steps"),
        (UnfreezeGradually, {"layer_decay": 0}, "layer_decay"),
        (UnfreezeGradually, {"layer_decay": 1.5}, "layer_decay"),
        (UnfreezeGradually, {"rates": (1e-2, 1e-3)}, "rates must be two finite numbers"),
        (UnfreezeGradually, {"rates": 0.1}, "rates must be two learning rates"),
        (UnfreezeGradually, {"rates": (1e-3, 1e-2), "layer_decay": 0.5}, "remove one of them"),
        (UnfreezeGradually, {"groups": "net"}, "groups must be a list"),
        (UnfreezeGradually, {"groups": []}, "groups must be a list"),
        (UnfreezeGradually, {"exclude": "net"}, "exclude must be a list"),
        (TrainLastGroups, {"count": 0}, "count must be a whole number >= 1"),
        (TrainLastGroups, {"count": True}, "count must be a whole number >= 1"),
        (FineTuneAll, {"factor": 0}, "factor must be in"),
        (FineTuneAll, {"factor": 1.5}, "factor must be in"),
        (FineTuneAll, {"factor": 0.5, "rates": (1e-3, 1e-2)}, "remove one of them"),
        (ProbeThenTune, {"probe": 0}, "probe must be a whole number >= 1"),
        (ProbeThenTune, {"probe": 1.0}, "probe must be a share"),
        (ProbeThenTune, {"factor": -1}, "factor must be in"),
    ],
)
def test_bad_settings_are_refused_in_the_constructor(plan, settings, words):
    with pytest.raises(RecipeError, match=words) as error:
        plan(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (TrainLastGroups(9), "count must be at most 4, .* got 9"),
        (UnfreezeGradually(groups=["net.0", "nett.3"]), "did you mean 'net.3'"),
        (UnfreezeGradually(groups=["net.0", "net.10"]), "groups must hold every parameter"),
        (UnfreezeGradually(exclude=["net.33"]), "exclude must name modules or parameters"),
        (ProbeThenTune(4), "probe must end before the training does, got 4 epochs of 4"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_step(plan, words):
    model = made()
    before = state(model)
    with pytest.raises(RecipeError, match=words) as error:
        quiet_trainer(plan, max_epochs=4).fit(model)
    assert "\n" not in str(error.value)
    assert moved(before, state(model)) == set()
    assert all(p.requires_grad for p in model.parameters())


def test_a_share_of_nobody_knows_what():
    with pytest.raises(RecipeError, match="its length is not known"):
        quiet_trainer(ProbeThenTune(0.5), max_epochs=-1, max_time="00:00:10:00").fit(made())


def test_excluding_everything_leaves_nothing_to_open():
    with pytest.raises(ModelError, match="none that are not excluded"):
        quiet_trainer(TrainHead(exclude=["net"])).fit(made())


@pytest.mark.parametrize("other", [TrainHead, BackboneFinetuning])
def test_two_plans_are_refused(other):
    with pytest.raises(RecipeError, match="frozen by one callback, got 2"):
        quiet_trainer(UnfreezeGradually(), other()).fit(made())
