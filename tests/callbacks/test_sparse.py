"""Pruned training: as under torch's own masks, exact, and sparse whatever comes between."""

import csv
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stablelightning.callbacks import PruneByL1, PruneGradually
from stablelightning.callbacks.stop_early import StopEarly
from stablelightning.errors import (
    CheckpointError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.model.prune import (
    layer_sparsity,
    prunable_weights,
    prune_model,
)
from stablelightning.model.snapshot import Snapshot
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from stablelightning.report.wandb import RunLogger
from tests.callbacks.modules import quiet_trainer
from tests.report.offline import read_offline_run

BATCHES = 8


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCHES * 6, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=6)


class Classifier(L.LightningModule):
    """Two layers of 4 x 12 and 12 x 2 weights; its validation score is what it is told."""

    def __init__(self, optimizer=None, scores=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
        self.optimizer = optimizer or (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)
        )
        self.scores = scores

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        scores = self.scores
        score = scores[min(self.current_epoch, len(scores) - 1)] if scores else 0.5
        self.log("val_loss", score)

    test_step = validation_step

    def configure_optimizers(self):
        return self.optimizer(self.parameters())

    def train_dataloader(self):
        return loader()

    val_dataloader = test_dataloader = train_dataloader


def fitted(*callbacks, model=None, **settings):
    model = model or Classifier()
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, **settings})
    trainer.fit(model)
    return trainer, model


def zeros(model) -> int:
    return sum(layer.zeros for layer in layer_sparsity(prunable_weights(model)))


class EveryStep(L.Callback):
    """Looks at the model before each optimizer's step, and after each batch."""

    def __init__(self, *, zeros_are_pruned: bool = True) -> None:
        self.zeros, self.masks = [], []
        self.zeros_are_pruned = zeros_are_pruned

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for weight in prunable_weights(pl_module):
            pruned = weight.parameter == 0
            assert not self.zeros_are_pruned or not weight.parameter.grad[pruned].any()

    def on_train_batch_end(self, trainer, pl_module, *_):
        weights = [weight.parameter.detach() for weight in prunable_weights(pl_module)]
        self.masks.append(torch.cat([(w == 0).flatten() for w in weights]))
        self.zeros.append(int(self.masks[-1].sum()))


# ---- what it does -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_kept_weights_train_as_under_torchs_reparametrization(optimizer):
    reference = Classifier(optimizer)
    for layer in (reference.net[0], reference.net[2]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    fitted(model=reference)
    _, ours = fitted(
        PruneGradually(0.5, start=0, end=0, per_layer=True), model=Classifier(optimizer)
    )
    for number in (0, 2):
        layer = reference.net[number]
        assert torch.equal(ours.net[number].weight, layer.weight_orig * layer.weight_mask)
        assert torch.equal(ours.net[number].bias, layer.bias)


def test_sparsity_follows_the_cubic_schedule_and_stays():
    seen = EveryStep()
    callback = PruneGradually(0.75, start=1, end=2, every_n_steps=2)
    fitted(callback, seen)
    weights, begin = 72, BATCHES
    steps = range(1, 3 * BATCHES + 1)
    expected = []
    for step in steps:
        at = min(max(step - begin, 0) // 2 * 2 / BATCHES, 1)
        expected.append(round(weights * 0.75 * (1 - (1 - at) ** 3)))
    assert seen.zeros == expected
    assert expected[0] == 0
    assert expected[-1] == 54
    assert all((~old | new).all() for old, new in zip(seen.masks, seen.masks[1:], strict=False))
    assert [c["step"] for c in callback.changes] == [10, 12, 14, 16]
    assert sum(layer.zeros for layer in callback.layers) == 54


def test_by_default_there_are_a_hundred_changes_at_most():
    callback = PruneGradually(0.9, start=0.0, end=1.0)
    fitted(callback, max_epochs=30)
    assert 90 <= len(callback.changes) <= 120


def test_per_layer_each_tensor_has_the_share():
    callback = PruneGradually(0.75, per_layer=True)
    fitted(callback)
    assert [layer.zeros for layer in callback.layers] == [36, 18]


def test_excluded_layers_stay_dense():
    callback = PruneGradually(0.5, exclude=["net.2"])
    _, model = fitted(callback)
    assert [layer.layer for layer in callback.layers] == ["net.0"]
    assert (model.net[2].weight != 0).all()


def test_biases_are_never_pruned():
    _, model = fitted(PruneGradually(0.9))
    assert (model.net[0].bias != 0).all()


def test_recurrent_weights_are_held_at_zero():
    class Reads(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.LSTM(4, 6, batch_first=True)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.net(x[:, None].expand(-1, 3, -1))[0][:, -1])

    seen = EveryStep()
    callback = PruneGradually(0.8)
    _, model = fitted(callback, seen, model=Reads())
    total = sum(layer.weights for layer in callback.layers)
    assert zeros(model) == round(0.8 * total)
    assert [layer.layer for layer in callback.layers] == [
        *("net.weight_ih_l0", "net.weight_hh_l0"),
        "head",
    ]


def test_l1_brings_weights_to_zero_before_it_cuts_and_lets_them_grow_after():
    seen = EveryStep(zeros_are_pruned=False)
    norms = []

    class Norms(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            norms.append(sum(w.parameter.abs().sum().item() for w in prunable_weights(pl_module)))

    adam = lambda p: torch.optim.Adam(p, lr=0.02)  # noqa: E731
    callback = PruneByL1(0.75, strength=0.3, end=0.5)
    fitted(callback, seen, Norms(), model=Classifier(adam), max_epochs=6)
    cut = 3 * BATCHES
    assert 0 < seen.zeros[cut - 2] < 54
    assert seen.zeros[cut - 1 :] == [54] * (cut + 1)
    assert norms[cut - 2] < norms[0]
    assert norms[-1] > norms[cut]
    assert [change["step"] for change in callback.changes] == [cut]


def test_l1_alone_may_leave_more_zeros_than_asked_which_then_may_grow():
    callback = PruneByL1(0.1, strength=5.0, end=0.5)
    adam = lambda p: torch.optim.Adam(p, lr=0.02)  # noqa: E731
    fitted(callback, model=Classifier(adam), max_epochs=4)
    assert sum(layer.zeros for layer in callback.layers) >= 7


# ---- every kind of training ---------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [2, 3])
def test_accumulated_batches_are_one_step(accumulated):
    callback, seen = PruneGradually(0.75, start=0, end=2), EveryStep()
    _, model = fitted(callback, seen, accumulate_grad_batches=accumulated)
    assert zeros(model) == 54
    assert callback.changes[-1]["step"] == 2 * -(-BATCHES // accumulated)


class ByHand(Classifier):
    """Two optimizers, each stepped twice in a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        for optimizer in self.optimizers() * 2:
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(x), y))
            optimizer.step()
            assert zeros(self) >= self.least
        self.least = zeros(self)

    least = 0

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.net[0].parameters(), lr=0.01),
            torch.optim.SGD(self.net[2].parameters(), lr=0.1, momentum=0.9),
        ]


@pytest.mark.parametrize("settings", [{}, {"max_steps": 64, "max_epochs": -1}])
def test_two_optimizers_by_hand(settings):
    _, model = fitted(PruneGradually(0.75), model=ByHand(), **settings)
    assert zeros(model) == 54


def test_under_a_loss_scaler():
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    _, model = fitted(PruneGradually(0.75), EveryStep(), plugins=[plugin])
    assert zeros(model) == 54
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "average",
    [
        lambda: EMAWeightAveraging(decay=0.9),
        lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=0.3),
    ],
    ids=["ema", "swa"],
)
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_as_sparse(average, first, tmp_path):
    callback = PruneGradually(0.75)
    keeper = ModelCheckpoint(tmp_path, save_last=True)
    both = [callback, average()] if first else [average(), callback]
    _, model = fitted(*both, keeper, max_epochs=4, enable_checkpointing=True)
    assert zeros(model) == 54
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert sum(int((state[f"net.{n}.weight"] == 0).sum()) for n in (0, 2)) == 54


def test_masks_hold_over_weights_that_somebody_restored():
    class GoesBack(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.snapshot = Snapshot(pl_module, trainer.optimizers, [])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 20:
                self.snapshot.restore()

    class SeesForward(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step >= 16:
                assert zeros(self) == 54
            return super().training_step(batch, batch_idx)

    _, model = fitted(PruneGradually(0.75, end=2), GoesBack(), model=SeesForward())
    assert zeros(model) == 54


# ---- checkpoints --------------------------------------------------------------------------------


def test_the_best_checkpoint_is_the_best_sparse_one(tmp_path):
    """Scores get worse while pruning goes on; the dense first epoch would be the best of all."""
    model = Classifier(scores=[0.1, 0.9, 0.8, 0.7, 0.5, 0.6])
    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss")
    callback = PruneGradually(0.75, start=1, end=2)
    trainer, _ = fitted(callback, keeper, model=model, max_epochs=6, enable_checkpointing=True)
    assert Path(keeper.best_model_path).name == "epoch=4.ckpt"
    assert [file.name for file in tmp_path.iterdir()] == ["epoch=4.ckpt"]
    # What test loads, in the same run, fits and is sparse; and what was told of the run stays.
    told = callback.state_dict()
    with torch.no_grad():
        model.net[0].weight.add_(1)
    trainer.test(ckpt_path="best", verbose=False, weights_only=True)
    assert zeros(model) == 54
    assert callback.state_dict()["changes"] == told["changes"]
    assert set(torch.load(keeper.best_model_path, weights_only=True)["state_dict"]) == set(
        Classifier().state_dict()
    )


@pytest.mark.parametrize(
    "stopping",
    [
        lambda: EarlyStopping("val_loss", patience=1),
        lambda: EarlyStopping("val_loss", patience=1, check_on_train_epoch_end=True),
        lambda: StopEarly("val_loss", patience=1),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_waits_until_the_model_is_sparse(stopping, first):
    model = Classifier(scores=[0.1, 0.2, 0.5, 0.4, 0.3, 0.9, 0.9])
    callbacks = [PruneGradually(0.75, start=1, end=3), stopping()]
    trainer, _ = fitted(*callbacks[:: 1 if first else -1], model=model, max_epochs=9)
    assert zeros(model) == 54
    assert trainer.current_epoch == 6  # stopped after the first 0.9, one epoch past the best


def test_a_test_of_a_checkpoint_from_before_says_so(tmp_path):
    keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer, model = fitted(PruneGradually(0.75, start=1, end=2), keeper, enable_checkpointing=True)
    with pytest.warns(StableLightningWarning, match=r"has 0.0% zeros, not the 75.0%"):
        trainer.test(model, ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False, weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StableLightningWarning)
        trainer.test(model, ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False, weights_only=True)


def test_a_stable_module_is_loaded_from_its_checkpoint(tmp_path):
    module = StableModule(MLP(4, 2, hidden=[8]), task="classification")
    keeper = ModelCheckpoint(tmp_path, save_last=True)
    callback = PruneGradually(0.9, per_layer=True)
    trainer = quiet_trainer(callback, keeper, max_epochs=3, enable_checkpointing=True)
    trainer.fit(module, loader())
    loaded = StableModule.load_from_checkpoint(
        tmp_path / "last.ckpt", network=MLP(4, 2, hidden=[8]), weights_only=True
    )
    assert zeros(loaded) == zeros(module) == round(0.9 * 32) + round(0.9 * 16)


def test_a_resumed_run_keeps_masks_where_kept_weights_are_zero(tmp_path):
    """Masks are not read off the weights: a head that starts at zero is not pruned by that."""

    class ZeroHead(Classifier):
        def __init__(self):
            super().__init__(lambda p: torch.optim.SGD(p, lr=0.0))
            nn.init.zeros_(self.net[2].weight)

    keeper = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    first = PruneGradually(0.5, start=0, end=2, per_layer=True)
    fitted(first, keeper, model=ZeroHead(), enable_checkpointing=True)
    second = PruneGradually(0.5, start=0, end=2, per_layer=True)
    trainer = quiet_trainer(second, max_epochs=3)
    trainer.fit(ZeroHead(), ckpt_path=tmp_path / "step=10.ckpt", weights_only=True)
    masks = [callback.state_dict()["masks"] for callback in (first, second)]
    for name in ("net.0.weight", "net.2.weight"):
        assert torch.equal(masks[0][name]["bits"], masks[1][name]["bits"])
    assert second.changes == first.changes


def test_masks_of_another_model_are_refused(tmp_path):
    keeper = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=20, save_top_k=-1)
    fitted(PruneGradually(0.5), keeper, enable_checkpointing=True)
    other = PruneGradually(0.5, exclude=["net.2"])
    with pytest.raises(CheckpointError, match=r"2 masks, 1 prunable weights"):
        quiet_trainer(other, max_epochs=3).fit(
            Classifier(), ckpt_path=tmp_path / "step=20.ckpt", weights_only=True
        )


# ---- fit again ----------------------------------------------------------------------------------


def test_the_same_trainer_goes_on_with_its_masks():
    callback = PruneGradually(0.75, start=0.0, end=0.5)
    trainer, model = fitted(callback)
    before = (model.net[0].weight == 0).clone()
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model)
    assert torch.equal(model.net[0].weight == 0, before)
    assert trainer.current_epoch == 5
    assert zeros(model) == 54


def test_another_trainer_begins_anew():
    callback = PruneGradually(0.75)
    fitted(callback)
    seen = EveryStep()
    fitted(callback, seen)
    assert seen.zeros[0] == 0
    assert seen.zeros[-1] == 54


def test_a_sparse_model_stays_as_sparse_while_it_trains_on():
    model = Classifier()
    prune_model(model, 0.75, per_layer=True)
    before = [weight.parameter == 0 for weight in prunable_weights(model)]
    fitted(PruneGradually(0.75, start=0, end=0, per_layer=True), model=model)
    after = [weight.parameter == 0 for weight in prunable_weights(model)]
    assert all(map(torch.equal, before, after))


# ---- what is told -------------------------------------------------------------------------------


def test_sparsity_and_scores_are_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = PruneGradually(0.75, start=1, end=2)
    model = Classifier(scores=[0.1, 0.2, 0.3])
    fitted(callback, model=model, logger=logger, log_every_n_steps=1)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    logged = [float(row["sparse/sparsity"]) for row in rows if row["sparse/sparsity"]]
    assert logged[0] == 0
    assert logged[-1] == 0.75
    assert logged == sorted(logged)
    (last,) = [row for row in rows if row["sparse/val_loss_before"]]
    assert float(last["sparse/val_loss_before"]) == pytest.approx(0.1)
    assert float(last["sparse/val_loss_after"]) == pytest.approx(0.3)
    assert callback.before == {"val_loss": pytest.approx(0.1)}
    assert [v["sparsity"] for v in callback.validations] == [0, 0.75, 0.75]


def test_wandb_gets_the_table_of_layers(tmp_path):
    logger = RunLogger(save_dir=str(tmp_path))
    fitted(PruneGradually(0.75), logger=logger)
    logger.finish()
    run = read_offline_run(tmp_path)
    assert "sparse/layers" in str(run)


def test_training_that_ends_early_says_how_far_it_came():
    class Stops(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    with pytest.warns(StableLightningWarning, match=r"was to prune 75.0%.*ended at [1-6]\d\.\d%"):
        fitted(PruneGradually(0.75, start=0.0, end=0.6), Stops())


def test_a_layer_that_lost_everything_is_named():
    model = Classifier(lambda p: torch.optim.SGD(p, lr=0.0))
    model.net[2].weight.data.zero_()
    with pytest.warns(StableLightningWarning, match=r"left no weight in net\.2:"):
        fitted(PruneGradually(0.5), model=model)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (PruneGradually, {"sparsity": 1.0}, "leaves no network"),
        (PruneByL1, {"sparsity": 1.5}, "leaves no network"),
        (PruneGradually, {"sparsity": 0}, "remove the callback"),
        (PruneGradually, {"start": 0.7}, "start must not be after end"),
        (PruneGradually, {"start": 5, "end": 3}, "start must not be after end"),
        (PruneGradually, {"end": 1.5}, "end must be a share"),
        (PruneGradually, {"start": -1}, "start must be a share"),
        (PruneGradually, {"start": True}, "start must be a share"),
        (PruneGradually, {"every_n_steps": 0}, "every_n_steps must be"),
        (PruneGradually, {"exclude": "net"}, "exclude must be a list"),
        (PruneByL1, {"strength": 0}, "strength must be a number > 0"),
        (PruneByL1, {"strength": float("nan")}, "strength must be a number > 0"),
        (PruneByL1, {"end": "half"}, "end must be a share"),
    ],
)
def test_settings_out_of_range(kind, settings, words):
    with pytest.raises(RecipeError, match=words):
        kind(**settings)


class Trained(Classifier):
    def training_step(self, batch, batch_idx):
        raise AssertionError("a step was trained")


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (PruneGradually(0.9, start=1, end=4), r"got 4 epochs \(32 steps\) in a training of 24"),
        (PruneByL1(0.9, end=4), r"PruneByL1 must end before the training does"),
        (PruneGradually(0.9, start=2, end=0.5), r"start must not be after end, got 2 \(step 16\)"),
        (PruneGradually(0.9, exclude=["body"]), "has no 'body'"),
    ],
)
def test_schedules_that_do_not_fit_are_refused_before_the_first_step(callback, words):
    with pytest.raises(RecipeError, match=words):
        fitted(callback, model=Trained())


class Endless(IterableDataset):
    def __iter__(self):
        x, y = next(iter(loader()))
        while True:
            yield x, y


def test_training_without_a_known_length_is_refused_and_max_steps_mends_it():
    endless = DataLoader(Endless(), batch_size=None)
    model = Classifier()
    with pytest.raises(RecipeError, match=r"set trainer\.max_steps"):
        quiet_trainer(PruneGradually(0.75), max_epochs=2).fit(Trained(), endless)
    with pytest.raises(RecipeError, match=r"set trainer\.max_steps"):
        quiet_trainer(PruneGradually(0.75, start=0, end=1), max_steps=9).fit(Trained(), endless)
    trainer = quiet_trainer(PruneGradually(0.75), max_steps=20, limit_val_batches=0)
    trainer.fit(model, endless)
    assert zeros(model) == 54


def test_models_without_prunable_weights_are_refused():
    class Looks(Trained):
        def __init__(self):
            super().__init__()
            self.net = nn.Embedding(4, 2)

    with pytest.raises(ModelError, match="Looks has none"):
        fitted(PruneGradually(0.5), model=Looks())


def test_two_pruners_and_sharded_models_are_refused():
    with pytest.raises(RecipeError, match=r"got 2 \(PruneGradually, PruneByL1\)"):
        fitted(PruneGradually(0.5), PruneByL1(0.5))
    callback = PruneGradually(0.5)
    trainer = quiet_trainer(callback)
    trainer.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    with pytest.raises(RecipeError, match="needs whole weights on every process, got Sharded"):
        callback.setup(trainer, Classifier(), "fit")


def test_a_model_that_torch_prunes_already_is_refused():
    model = Trained()
    prune.l1_unstructured(model.net[0], "weight", amount=0.5)
    with pytest.raises(ModelError, match="make_permanent"):
        fitted(PruneGradually(0.5), model=model)
