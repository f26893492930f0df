import logging
import os
import pickle
import random
import signal
import warnings
from functools import partial
from typing import Any

import lightning as L
import numpy
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import ClipGradientNorm, InitializeWeights
from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.errors import (
    CheckpointError,
    DataError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.model.loaded import loaded_parameters
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from tests.callbacks.modules import FEATURES, OtherTask, Plain, data, loader, quiet_trainer
from tests.processes import WORLD, reports_of

OTHER = {"class_path": "tests.callbacks.modules.OtherTask"}
SIMCLR = {
    "class_path": "stablelightning.pretraining.SimCLR",
    "init_args": {"embedding": 8, "views": {"class_path": "stablelightning.nn.augment.RowViews"}},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


def module(net: nn.Module | None = None, **settings: Any) -> StableModule:
    optimizer = settings.pop("optimizer", partial(torch.optim.SGD, lr=0.1))
    return StableModule(net or network(), task="classification", optimizer=optimizer, **settings)


class SeesTheStart(L.Callback):
    """The weights with which the training begins."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = {n: v.detach().clone() for n, v in pl_module.state_dict().items()}


def begun(
    first: PretrainFirst | None,
    model: L.LightningModule | None = None,
    *more: L.Callback,
    **of: Any,
) -> dict[str, Tensor]:
    """The weights from which the training of ``model`` starts."""
    see = SeesTheStart()
    callbacks = [*([] if first is None else [first]), *more, see]
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 1, **of})
    trainer.fit(model if model is not None else module(), loader())
    return see.state


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


BELOW = {
    f"network.{name}"
    for name in (
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    )
}


# ---- what is learned ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [None, SIMCLR], ids=["labels", "objective"])
@pytest.mark.parametrize("described", [True, False])
def test_everything_below_the_head_is_learned_elsewhere(objective, described):
    fresh = module().state_dict()
    first = PretrainFirst(OTHER if described else OtherTask(), objective=objective, max_epochs=3)
    start = begun(first)
    assert changed(fresh, start) == BELOW
    assert set(first.record["taken_over"]) == BELOW
    assert first.record["kind"] == ("supervised" if objective is None else "contrastive")
    assert first.record["data"] == "OtherTask"
    assert len(first.record["train"]) == first.record["epochs"] == 3
    assert len(first.record["validation"]) == 3


class SameSize(OtherTask):
    num_outputs = None


def test_it_is_what_the_module_would_learn_there():
    first = PretrainFirst(SameSize(), max_epochs=2, seed=5)
    start = begun(first)
    twin = module()
    torch.manual_seed(5)
    quiet_trainer(max_epochs=2, num_sanity_val_steps=0).fit(twin, datamodule=SameSize())
    assert first.record["kept"] == 2
    assert changed(twin.state_dict(), start) == {"network.4.weight", "network.4.bias"}
    assert not changed(start, {**module().state_dict(), **{n: start[n] for n in BELOW}})


def test_the_seed_decides_and_nothing_else():
    def start(seed: int, outside: int) -> dict[str, Tensor]:
        model = module()
        torch.manual_seed(outside)
        return begun(PretrainFirst(OTHER, max_epochs=1, seed=seed), model)

    assert not changed(start(1, 10), start(1, 20))
    assert changed(start(1, 10), start(2, 10))


def test_the_epoch_with_the_smallest_validation_loss_is_kept():
    first = PretrainFirst(OTHER, max_epochs=6)
    uphill = partial(torch.optim.SGD, lr=0.5, maximize=True)
    begun(first, module(optimizer=uphill))
    losses = first.record["validation"]
    assert first.record["kept"] == losses.index(min(losses)) + 1
    assert first.record["kept"] < 6


def test_without_validation_the_last_epoch_counts():
    class Unvalidated(OtherTask):
        val_dataloader = L.LightningDataModule.val_dataloader

    first = PretrainFirst(Unvalidated(), max_epochs=3)
    begun(first)
    assert first.record["kept"] == 3
    assert first.record["validation"] == []


class FewLabels(L.LightningDataModule):
    """Six labelled rows, 40 whose labels are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def part(self, name: str) -> Any:
        return data(6)

    def unlabelled_part(self) -> Any:
        return [row for row, _ in data(40)]

    def loader(self, dataset: Any, *, shuffle: bool = False) -> DataLoader[Any]:
        self.seen.append(len(dataset))
        return DataLoader(dataset, batch_size=16, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part("train"), batch_size=6)


def test_rows_whose_labels_are_not_used_are_learned_from():
    own = FewLabels()
    first = PretrainFirst(objective=SIMCLR, max_epochs=1)
    trainer = quiet_trainer(first, max_epochs=1)
    trainer.fit(module(), datamodule=own)
    assert set(own.seen) == {46}
    assert first.record["data"] == "FewLabels"


def test_an_objective_takes_the_runs_own_rows():
    first = PretrainFirst(objective=SIMCLR, max_epochs=2)
    fresh = module().state_dict()
    assert changed(fresh, begun(first)) == BELOW
    assert first.record["data"] == "StableModule"


# ---- a file -------------------------------------------------------------------------------------


def test_weights_come_out_of_a_file(tmp_path):
    other = network()
    for value in other.parameters():
        nn.init.normal_(value)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    fresh = module().state_dict()
    first = PretrainFirst(weights=tmp_path / "other.pt")
    start = begun(first)
    # The head in the file is of the same size, and of another task.
    assert changed(fresh, start) == {n for n in BELOW if "running" not in n and "num_" not in n}
    assert torch.equal(start["network.0.weight"], other[0].weight)
    assert first.record["loaded"]["share"] == 1.0
    assert first.report.loaded
    assert first.record["kind"] == ""
    assert "100%" in first.summary()


def test_a_file_is_trained_further(tmp_path):
    torch.save(network().state_dict(), tmp_path / "other.pt")
    first = PretrainFirst(OTHER, weights=str(tmp_path / "other.pt"), max_epochs=1)
    begun(first)
    assert first.record["loaded"]["share"] == 1.0
    assert first.record["kind"] == "supervised"
    assert set(first.numbers()) == {
        "pretrain/epochs",
        "pretrain/loss",
        "pretrain/val_loss",
        "pretrain/loaded_share",
    }


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", None])
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "broken.pt"
    if content is not None:
        path.write_bytes(content)
    model = module()
    fresh = {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        begun(PretrainFirst(weights=str(path)), model)
    assert "\n" not in str(caught.value)
    assert not changed(fresh, model.state_dict())


# ---- beside others ------------------------------------------------------------------------------


def deep() -> nn.Module:
    """Layers large enough to be recognised as fresh."""
    torch.manual_seed(0)
    return MLP(FEATURES, 3, hidden=[64, 64], dropout=0.0)


@pytest.mark.parametrize("order", [1, -1])
def test_initialization_draws_the_head_and_leaves_what_was_learned(order):
    tiny = partial(torch.optim.SGD, lr=1e-9)  # so little that by themselves weights look fresh
    initialize = InitializeWeights()
    first = PretrainFirst(OTHER, max_epochs=1)
    model = module(deep(), optimizer=tiny)
    see = SeesTheStart()
    trainer = quiet_trainer(*[first, initialize][::order], see, max_epochs=1)
    trainer.fit(model, loader())
    below = {f"network.{name}" for name, _ in deep().named_parameters() if "head" not in name}
    assert set(first.record["taken_over"]) == below
    if order == 1:
        assert loaded_parameters(model) >= {"network.body.0.weight", "network.body.3.weight"}
        assert set(initialize.report.changed) == {"network.head.weight", "network.head.bias"}


def test_the_training_inside_is_initialized_too():
    """The run draws its weights for what follows them, and so does what comes before it."""
    still = partial(torch.optim.SGD, lr=0.0)
    first = PretrainFirst(OTHER, max_epochs=1)
    start = begun(first, module(deep(), optimizer=still), InitializeWeights())
    he = (2 / FEATURES) ** 0.5
    assert float(start["network.body.0.weight"].std()) == pytest.approx(he, rel=0.25)
    assert not start["network.body.0.bias"].any()


def test_what_would_draw_everything_anew_is_refused():
    with pytest.raises(RecipeError, match="overwrite=True"):
        begun(PretrainFirst(OTHER), None, InitializeWeights(overwrite=True))


def test_the_training_inside_is_clipped_as_the_run_is():
    fast = partial(torch.optim.SGD, lr=1e4)
    still = begun(
        PretrainFirst(OTHER, max_epochs=1),
        module(optimizer=fast),
        ClipGradientNorm(max_norm=1e-12),
    )
    fresh = module().state_dict()
    for name in ("network.0.weight", "network.0.bias"):
        torch.testing.assert_close(still[name], fresh[name], rtol=0, atol=1e-6)


# ---- when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_other_loops_are_left_alone(loop):
    first = PretrainFirst(OTHER)
    model = module()
    fresh = {n: v.clone() for n, v in model.state_dict().items()}
    getattr(quiet_trainer(first), loop)(model, loader())
    assert not changed(fresh, model.state_dict())
    assert first.record == {}


def test_a_second_fit_and_a_resumed_one_go_on(tmp_path):
    keep = ModelCheckpoint(tmp_path, "one", save_last=False)
    first = PretrainFirst(OTHER, max_epochs=1)
    model = module()
    trainer = quiet_trainer(first, keep, max_epochs=1, enable_checkpointing=True)
    trainer.fit(model, loader())
    trained = {n: v.clone() for n, v in model.state_dict().items()}
    second = PretrainFirst(OTHER, max_epochs=1)
    assert not changed(trained, begun(second, model))
    assert second.record == {}
    resumed = PretrainFirst({"class_path": "no.such.Data"})
    kept = begun_from(resumed, tmp_path / "one.ckpt")
    assert not changed(trained, kept)
    assert resumed.record == first.record


def begun_from(first: PretrainFirst, path: Any) -> dict[str, Tensor]:
    see = SeesTheStart()
    trainer = quiet_trainer(first, see, max_epochs=2)
    trainer.fit(module(), loader(), ckpt_path=path)
    return see.state


def test_layers_that_the_module_makes_itself_are_pretrained():
    class Late(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = None
            self.made = 0

        def configure_model(self) -> None:
            if self.net is None:
                torch.manual_seed(0)
                self.made += 1
                self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 3))

    first = PretrainFirst(OTHER, max_epochs=1)
    model = Late()
    start = begun(first, model)
    assert set(first.record["taken_over"]) == {"net.0.weight", "net.0.bias"}
    fresh = Late()
    fresh.configure_model()
    assert changed(fresh.state_dict(), start) == {"net.0.weight", "net.0.bias"}
    assert model.made == 1
    assert "configure_model" not in vars(model)


# ---- what is left as it was ---------------------------------------------------------------------


class Watched(PretrainFirst):
    def setup(self, trainer, pl_module, stage):
        def state() -> tuple:
            handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
            filters = list(logging.getLogger("lightning.pytorch.utilities.rank_zero").filters)
            return (
                torch.get_rng_state().tolist(),
                random.getstate(),
                numpy.random.get_state()[1].tolist(),
                handlers,
                filters,
                list(warnings.filters),
                dict(os.environ),
                torch.is_grad_enabled(),
                [id(callback) for callback in trainer.callbacks],
                trainer.fit_loop._combined_loader,
                pl_module.trainer is trainer,
                {name for name, value in vars(pl_module).items() if callable(value)},
                [(name, id(p)) for name, p in pl_module.named_parameters()],
                [m.training for m in pl_module.modules()],
                [p.grad for p in pl_module.parameters()],
            )

        before = state()
        super().setup(trainer, pl_module, stage)
        assert self.record["epochs"] == 1
        assert state() == before


def test_nothing_else_is_changed(tmp_path):
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(
        Watched(OTHER, max_epochs=1), max_epochs=1, logger=logger, log_every_n_steps=1
    )
    trainer.fit(module(), loader(), loader())
    logger.save()
    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    header, first, *_ = text.splitlines()
    assert "pretrain/val_loss" in header
    assert first.count("0") >= 1
    assert trainer.global_step == 3


def test_the_run_draws_as_without_it():
    def order(first: PretrainFirst | None) -> Tensor:
        seen = []

        class See(L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                seen.append(batch[0])

        model = module()
        torch.manual_seed(3)
        rows = DataLoader(data(), batch_size=5, shuffle=True)
        callbacks = [*([first] if first else []), See()]
        quiet_trainer(*callbacks, max_epochs=1).fit(model, rows)
        return torch.cat(seen)

    assert torch.equal(order(None), order(PretrainFirst(OTHER, max_epochs=2)))


def test_an_interrupt_inside_is_an_interrupt_of_the_run():
    class Interrupted(OtherTask):
        def val_dataloader(self) -> Any:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    trainer = quiet_trainer(PretrainFirst(Interrupted(), max_epochs=1), max_epochs=1)
    with pytest.raises(SystemExit):  # what Lightning makes of it
        trainer.fit(module(), loader())
    assert trainer.interrupted
    signal.signal(signal.SIGINT, handler)


def test_it_tells_what_it_does(caplog):
    with caplog.at_level(logging.INFO):
        begun(PretrainFirst(OTHER, max_epochs=20))
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Pretraining: ")]
    assert told[0] == "Pretraining: 20 epochs on OtherTask by labels"
    assert len(told) == 11
    assert told[-1].startswith("Pretraining: epoch 20 of 20, loss ")
    fits = [r for r in caplog.records if "`Trainer.fit` stopped" in r.getMessage()]
    assert len(fits) == 1  # of the run itself


# ---- what cannot be done ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_epochs": 0}, "max_epochs must be a whole number >= 1"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"data": {"init_args": {}}}, "data must be a description with a class_path"),
        ({"objective": 3}, "objective must be a description"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(RecipeError, match=words):
        PretrainFirst(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "something to begin with"),
        ({"data": {"class_path": "no.such.Data"}}, "data must name a class"),
        ({"data": {"class_path": "torch.nn.Linear"}}, "data must be a LightningDataModule"),
        ({"objective": "stablelightning.module.NoModule"}, "objective must name a class"),
        ({"objective": "tests.callbacks.modules.Plain"}, "that takes a network"),
        (
            {"objective": {**SIMCLR, "init_args": {"temperatur": 1.0}}},
            "does not describe a SimCLR.*temperatur",
        ),
    ],
)
def test_what_cannot_be_made_is_said_before_training(settings, words):
    with pytest.raises(RecipeError, match=words) as caught:
        begun(PretrainFirst(**settings))
    assert "\n" not in str(caught.value)


def test_where_it_is_not_required_training_goes_on():
    model = module()
    fresh = {n: v.clone() for n, v in model.state_dict().items()}
    first = PretrainFirst({"class_path": "no.such.Data"}, required=False)
    with pytest.warns(StableLightningWarning, match="leaves the weights as they are"):
        start = begun(first, model)
    assert not changed(fresh, start)
    assert first.record == {}


def test_a_module_with_several_networks_says_which_it_needs():
    class Two(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(2, 2)

    with pytest.raises(ModelError, match="call that of the network 'network'"):
        begun(PretrainFirst(OTHER, objective=SIMCLR), Two())


def test_an_objective_needs_training_data():
    class NoData(OtherTask):
        train_dataloader = L.LightningDataModule.train_dataloader

    with pytest.raises((DataError, Exception), match="train_dataloader"):
        begun(PretrainFirst(NoData(), objective=SIMCLR))


def test_a_used_one_pickles():
    first = PretrainFirst(OTHER, objective=SIMCLR, max_epochs=1)
    begun(first)
    again = pickle.loads(pickle.dumps(first))
    assert again.record == first.record
    assert again.objective == SIMCLR


# ---- two processes ------------------------------------------------------------------------------


class Draws(L.Callback):
    """Each process has its own statistics and its own generator."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.manual_seed(100 + trainer.global_rank)


def report(rank: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, objective in (("labels", None), ("objective", SIMCLR)):
        see, first = SeesTheStart(), PretrainFirst(OTHER, objective=objective, max_epochs=2)
        settings = {"strategy": "ddp", "devices": WORLD, "max_epochs": 1}
        trainer = quiet_trainer(Draws(), first, see, **settings)
        model = module()
        trainer.fit(model, DataLoader(TensorDataset(*data(24).tensors), batch_size=4))
        seen[name] = {
            "start": see.state,
            "end": {n: p.detach() for n, p in model.named_parameters()},
            "record": first.record,
            "world": trainer.world_size,
            "environment": os.environ.get("WORLD_SIZE"),
        }
    first = PretrainFirst(weights=f"/no/such/{rank}", required=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(first, strategy="ddp", devices=WORLD, max_epochs=1)
        trainer.fit(module(), loader())
    seen["told"] = [str(w.message) for w in caught if "leaves the weights" in str(w.message)]
    return seen


def test_two_processes_begin_alike(tmp_path):
    first, second = reports_of(report, tmp_path)
    fresh = module().state_dict()
    for name in ("labels", "objective"):
        ours, theirs = first[name], second[name]
        assert not changed(ours["start"], theirs["start"])
        assert not changed(ours["end"], theirs["end"])
        assert ours["record"] == theirs["record"]
        assert changed(fresh, ours["start"]) == BELOW
    assert len(first["told"]) == 1
