"""StableMixin: what it gives, what it leaves alone, and where it works."""

import copy
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.demos import BoringModel, LightningTransformer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAUROC

import stablelightning as sl
from stablelightning.errors import DataError, ModelError, NothingRandomError, RecipeError
from stablelightning.nn import MLP, GaussianHead

ROWS, FEATURES, CLASSES = 50, 4, 3


class Net(sl.StableMixin, L.LightningModule):
    """Classifier as a user writes it."""

    def __init__(self, width: int = 8, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(task="classification", **kwargs)
        self.net = MLP(FEATURES, CLASSES, hidden=[width], dropout=dropout)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


class OwnLoss(Net):
    def loss(self, batch: Any) -> Any:
        x, y = batch
        return {"loss": F.nll_loss(self(x).log_softmax(1), y), "size": x.square().mean()}


def class_rows(rows: int = ROWS) -> TensorDataset:
    x = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def loader(data: Any = None, batch_size: int = 16) -> DataLoader:
    return DataLoader(class_rows() if data is None else data, batch_size=batch_size)


def trainer(**settings: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**quiet, **settings})


# ---- the example of the README -----------------------------------------------------------------


def test_readme_example(tmp_path: Path) -> None:
    from stablelightning.data import DigitsData

    class Digits(sl.StableMixin, L.LightningModule):
        def __init__(self, width: int = 64, **kwargs: Any) -> None:
            super().__init__(task="classification", **kwargs)
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 10)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model, data = Digits(optimizer=partial(torch.optim.AdamW, lr=3e-3)), DigitsData()
    train = trainer(max_epochs=8, callbacks=sl.recommended_callbacks())
    train.fit(model, data)
    scores = train.test(model, data)[0]
    prediction = sl.mc_dropout(model, next(iter(data.test_dataloader()))[0], samples=20)

    assert scores["test/accuracy"] > 0.9
    assert scores["uncertainty/accuracy_mc"] > 0.9
    assert (prediction.epistemic >= 0).all()
    per_batch = train.predict(model, data.test_dataloader())
    assert all(isinstance(batch, sl.Prediction) for batch in per_batch)


# ---- what is logged ----------------------------------------------------------------------------


def test_keys_and_values_of_a_classification() -> None:
    net, run = Net(), trainer()
    run.fit(net, loader(), loader())
    assert set(run.callback_metrics) == {
        "train/loss",
        "train/loss_epoch",
        "val/loss",
        "val/accuracy",
        "val/f1",
    }
    tested = run.test(net, loader(), verbose=False)[0]
    assert set(tested) == {"test/loss", "test/accuracy", "test/f1"}
    # 50 rows in batches of 16: the last batch has 2, and must not weigh as much as the others.
    inputs, target = class_rows().tensors
    net.eval()
    logits = net(inputs)
    assert tested["test/loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
    right = (logits.argmax(1) == target).float().mean().item()
    assert tested["test/accuracy"] == pytest.approx(right)


class Labels(sl.StableMixin, L.LightningModule):
    def __init__(self, labels: int = 2, **kwargs: Any) -> None:
        super().__init__(task="multilabel", **kwargs)
        self.net = MLP(FEATURES, labels, hidden=[8])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Numbers(sl.StableMixin, L.LightningModule):
    task = "regression"

    def __init__(self, variance: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = MLP(FEATURES, 1, hidden=[8], variance=variance)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def test_labels_are_scored_at_one_half() -> None:
    inputs = class_rows().tensors[0]
    target = (inputs[:, :2] > 0).long()
    net, run = Labels(), trainer()
    tested = run.test(net, loader(TensorDataset(inputs, target)), verbose=False)[0]
    net.eval()
    logits = net(inputs)
    expected = F.binary_cross_entropy_with_logits(logits, target.float()).item()
    assert tested["test/loss"] == pytest.approx(expected, rel=1e-5)
    assert tested["test/accuracy"] == pytest.approx(((logits > 0) == target).float().mean().item())
    assert 0 <= tested["test/f1"] <= 1


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_numbers_meet_their_targets_row_by_row(variance: bool, column: bool) -> None:
    inputs = class_rows().tensors[0]
    target = inputs.sum(1).double()  # as pandas gives it
    data = TensorDataset(inputs, target.unsqueeze(1) if column else target)
    net, run = Numbers(variance=variance), trainer()
    run.fit(net, loader(data))
    tested = run.test(net, loader(data), verbose=False)[0]
    net.eval()
    output = net(inputs)
    mean = output.mean if variance else output.squeeze(1)
    mse = F.mse_loss(mean, target.float()).item()
    assert tested["test/rmse"] == pytest.approx(mse**0.5, rel=1e-5)
    assert tested["test/mae"] == pytest.approx((mean - target).abs().mean().item(), rel=1e-5)
    if variance:
        mse = F.gaussian_nll_loss(mean, target.float(), output.variance, full=True).item()
    assert tested["test/loss"] == pytest.approx(mse, rel=1e-5)


def test_own_loss_may_bring_more_to_log() -> None:
    run = trainer()
    run.fit(OwnLoss(), loader(), loader())
    assert {"train/size", "train/size_epoch", "val/size", "val/accuracy"} <= set(
        run.callback_metrics
    )


def test_what_is_no_number_is_not_logged() -> None:
    class Talkative(Net):
        def loss(self, batch: Any) -> Any:
            rest = {"rows": 16, "rate": 0.5, "names": ["a", "b"], "none": None, "logits": batch[0]}
            return {"loss": super().loss(batch), **rest}

    run = trainer()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*needs to be floating")
        run.fit(Talkative(), loader(), loader())
    assert run.callback_metrics["val/rows"] == 16
    assert run.callback_metrics["train/rate_epoch"] == 0.5
    logged = {key.removeprefix("val/") for key in run.callback_metrics if key.startswith("val/")}
    assert logged == {"loss", "rows", "rate", "accuracy", "f1"}


def test_own_loss_does_not_cost_a_second_forward() -> None:
    net = OwnLoss()
    trainer().validate(net, loader(), verbose=False)
    assert net.calls == 4  # one per batch


def test_metrics_do_without_a_forward_in_the_loss() -> None:
    class Direct(Net):
        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    direct, run = Direct(), trainer()
    scores = run.validate(direct, loader(), verbose=False)[0]
    inputs, target = class_rows().tensors
    right = (direct.eval()(inputs).argmax(1) == target).float().mean().item()
    assert scores["val/accuracy"] == pytest.approx(right)


def test_each_dataloader_has_metrics_of_its_own() -> None:
    inputs, net = class_rows().tensors[0], Net()
    right = net.eval()(inputs).argmax(1)
    loaders = [loader(TensorDataset(inputs, y)) for y in (right, (right + 1) % CLASSES)]
    scores = trainer().validate(net, loaders, verbose=False)
    assert scores[0]["val/accuracy/dataloader_idx_0"] == 1.0
    assert scores[1]["val/accuracy/dataloader_idx_1"] == 0.0


def test_own_metrics_take_the_place_of_the_defaults() -> None:
    class Ranked(Net):
        def task_metrics(self, output: Any) -> Any:
            return {"auroc": MulticlassAUROC(output.shape[1])}

    scores = trainer().test(Ranked(), loader(), verbose=False)[0]
    assert set(scores) == {"test/loss", "test/auroc"}


def test_no_task_needs_a_loss_and_has_no_metrics() -> None:
    class Taskless(sl.StableMixin, L.LightningModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.net = nn.Linear(FEATURES, CLASSES)

        def loss(self, batch: Any) -> Tensor:
            return self.net(batch[0]).square().mean()

    assert set(trainer().test(Taskless(), loader(), verbose=False)[0]) == {"test/loss"}
    with pytest.raises(ModelError, match="must have a task or a loss"):
        sl.StableMixin.loss(Taskless(), next(iter(loader())))


# ---- what the user defines stays theirs --------------------------------------------------------


def test_own_steps_win() -> None:
    class Own(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 2

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.25)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return "own"

    own, run = Own(), trainer()
    run.fit(own, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.25
    assert run.predict(own, loader())[0] == "own"


def test_hooks_that_users_override_are_left_alone() -> None:
    given = {name for name in vars(sl.StableMixin) if name in dir(L.LightningModule)}
    assert {name for name in given if not name.startswith("__")} == {
        "configure_optimizers",
        "load_from_checkpoint",  # called, and not overridden
        "predict_step",
        "test_step",
        "training_step",
        "validation_step",
    }


def test_boring_model_keeps_its_own_ways() -> None:
    class Stable(sl.StableMixin, BoringModel): ...

    model, run = Stable(samples=4), trainer(max_steps=3, limit_val_batches=2, limit_test_batches=2)
    run.fit(model)
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert run.global_step == 3
    run.test(model, verbose=False)
    with pytest.raises(NothingRandomError, match="pass samples=0") as error:
        run.predict(model)
    assert "\n" not in str(error.value)


def test_without_samples_a_prediction_is_what_forward_returns() -> None:
    class Stable(sl.StableMixin, BoringModel): ...

    model = Stable(samples=0)
    outputs = trainer(limit_predict_batches=2).predict(model)
    assert [output.shape for output in outputs] == [(1, 2), (1, 2)]


def test_the_demo_transformer_gets_uncertain_predictions() -> None:
    class Stable(sl.StableMixin, LightningTransformer):
        def prepare_data(self) -> None: ...  # theirs downloads

    model = Stable(vocab_size=11, samples=3)
    words = torch.randint(11, (4, 2, 6))
    data = DataLoader(TensorDataset(words[:, 0], words[:, 1]), batch_size=2)
    run = trainer(max_steps=2)
    run.fit(model, data)
    prediction = run.predict(model, data)[0]
    assert prediction.mean.shape == (12, 11)
    assert prediction.epistemic.max() > 0


def test_a_combined_batch_reaches_the_loss_as_it_is() -> None:
    seen = []

    class Two(Net):
        def loss(self, batch: Any) -> Tensor:
            seen.append(batch)
            (x, y), (more, _) = batch["labelled"], batch["more"]
            return F.cross_entropy(self(x), y) + self(more).square().mean()

    both = CombinedLoader({"labelled": loader(), "more": loader(batch_size=8)}, "min_size")
    run = trainer()
    run.fit(Two(), both)
    assert set(seen[0]) == {"labelled", "more"}
    assert seen[0]["more"][0].shape == (8, FEATURES)
    assert torch.isfinite(run.callback_metrics["train/loss_epoch"])


def test_a_loss_of_none_skips_the_batch() -> None:
    class Skips(Net):
        def loss(self, batch: Any) -> Any:
            return None

    net = Skips()
    before = copy.deepcopy(net.state_dict())
    trainer().fit(net, loader(), loader())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# ---- optimizer and schedule --------------------------------------------------------------------


def test_the_optimizer_and_the_schedule_are_as_given() -> None:
    net = Net(
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1),
        scheduler_interval="step",
    )
    run = trainer()
    run.fit(net, loader())
    group = run.optimizers[0].param_groups[0]
    assert group["momentum"] == 0.9
    assert group["lr"] == pytest.approx(0.5 * 0.1**4)  # four batches
    assert {id(p) for p in group["params"]} == {id(p) for p in net.parameters()}


def test_adam_is_the_default() -> None:
    assert type(Net().configure_optimizers()) is torch.optim.Adam


@pytest.mark.parametrize(
    ("scheduler", "monitored"),
    [
        (
            partial(ReduceLROnPlateau, monitor="val/accuracy", mode="max", patience=0),
            "val/accuracy",
        ),
        (partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0), "val/loss"),
    ],
)
def test_a_plateau_is_told_its_quantity(scheduler: Any, monitored: str) -> None:
    net = Net(optimizer=partial(torch.optim.SGD, lr=0.0), scheduler=scheduler)
    assert net.configure_optimizers()["lr_scheduler"]["monitor"] == monitored
    run = trainer(max_epochs=3)
    run.fit(net, loader(), loader())
    # A rate of 0 never improves anything, and a tenth of it is still 0: count the bad epochs.
    assert run.lr_scheduler_configs[0].scheduler.best is not None
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 3


# ---- state -------------------------------------------------------------------------------------


def test_metrics_add_nothing_to_the_state_and_the_module_pickles() -> None:
    net = Net()
    before = set(net.state_dict())
    run = trainer()
    run.fit(net, loader(), loader())
    run.test(net, loader(), verbose=False)
    assert set(net.state_dict()) == before
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        inputs = class_rows().tensors[0]
        assert torch.equal(twin.eval()(inputs), net.eval()(inputs))
        trainer().test(twin, loader(), verbose=False)
    Net().load_state_dict(net.state_dict(), strict=True)


def test_a_copy_shares_what_makes_the_optimizer_and_copies_nothing_behind_it() -> None:
    class Interface:
        def __deepcopy__(self, memo: dict[int, Any]) -> None:
            raise AssertionError("a recipe's optimizer holds the command line interface")

        def __call__(self, parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.25)

    twin = copy.deepcopy(Net(optimizer=Interface()))
    optimizer: Any = twin.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["params"][0] is next(twin.parameters())


def test_a_checkpoint_builds_the_network_again(tmp_path: Path) -> None:
    net = Net(width=5, samples=7, optimizer=partial(torch.optim.SGD, lr=0.1))
    run = trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(net, loader())
    path = run.checkpoint_callback.best_model_path
    kept = torch.load(path, weights_only=True)["hyper_parameters"]
    assert kept == {"width": 5, "dropout": 0.5, "samples": 7}
    again = Net.load_from_checkpoint(path)
    inputs = class_rows().tensors[0]
    assert torch.equal(again.eval()(inputs), net.eval()(inputs))
    resumed = trainer(default_root_dir=tmp_path, max_epochs=2)
    resumed.fit(Net(width=5, optimizer=partial(torch.optim.SGD)), loader(), ckpt_path=path)
    assert resumed.current_epoch == 2


def test_metrics_survive_a_change_of_grad_mode() -> None:
    net = Net()
    trainer().validate(net, loader(), verbose=False)  # in inference mode
    trainer(inference_mode=False).validate(net, loader(), verbose=False)
    trainer().fit(net, loader(), loader())


# ---- trainers and loggers ----------------------------------------------------------------------


def test_several_loggers_get_every_key(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name=name) for name in ("one", "two")]
    run = trainer(logger=loggers, log_every_n_steps=1)
    run.fit(Net(), loader(), loader())
    for logger in loggers:
        text = (Path(logger.log_dir) / "metrics.csv").read_text()
        assert {"train/loss", "train/loss_epoch", "val/loss", "val/accuracy"} <= set(
            text.splitlines()[0].split(",")
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"fast_dev_run": True, "logger": True},
        {"accumulate_grad_batches": 3},
        {"num_sanity_val_steps": 2, "max_epochs": 2},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"gradient_clip_val": 1.0},
    ],
)
def test_trainer_settings(settings: dict[str, Any]) -> None:
    run = trainer(**settings)
    net = Net()
    run.fit(net, loader(), loader())
    assert torch.isfinite(run.callback_metrics["val/loss"])
    run.test(net, loader(), verbose=False)
    assert run.predict(net, loader())[0].mean.shape[1] == CLASSES


def test_barebones_is_quiet() -> None:
    run = L.Trainer(barebones=True, max_epochs=1, accelerator="cpu")
    net = Net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(net, loader(), loader())
        run.test(net, loader(), verbose=False)
    assert not [w for w in caught if "self.log" in str(w.message)]


def test_steps_can_be_called_without_a_trainer() -> None:
    net, batch = Net(), next(iter(loader()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.training_step(batch, 0).backward()
        assert torch.isfinite(net.validation_step(batch, 0))


def test_compiled_modules_train_and_predict() -> None:
    net = torch.compile(Net(samples=3), backend="eager")
    run = trainer()
    run.fit(net, loader(), loader())
    assert 0 <= run.callback_metrics["val/accuracy"] <= 1
    assert run.predict(net, loader())[0].epistemic.max() > 0


def test_two_processes_agree_on_the_epoch() -> None:
    net = Net()
    alone = trainer().validate(net, loader(class_rows(48)), verbose=False)[0]
    pair = trainer(strategy="ddp_spawn", devices=2, use_distributed_sampler=True)
    together = pair.validate(net, loader(class_rows(48)), verbose=False)[0]
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=1e-5), key


class Still(OwnLoss):
    """Trains without moving, so that an epoch can be checked by hand; draws nothing."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0, optimizer=partial(torch.optim.SGD, lr=0.0))


class EarOpen(L.Callback):
    """Turns the advice to synchronise into an error, in the process where it is given."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        warnings.filterwarnings("error", message=".*sync_dist=True")


def test_two_processes_agree_on_the_training_epoch() -> None:
    net = Still()
    alone, pair = trainer(), trainer(strategy="ddp_spawn", devices=2, callbacks=[EarOpen()])
    for run in (alone, pair):
        run.fit(net, loader(class_rows(48), batch_size=8))
    for key in ("train/loss_epoch", "train/size_epoch"):
        mean = alone.callback_metrics[key]
        assert pair.callback_metrics[key] == pytest.approx(mean.item(), rel=1e-5), key


# ---- predictions -------------------------------------------------------------------------------


def test_predictions_are_uncertain_and_leave_the_target_aside() -> None:
    inputs, target = class_rows().tensors
    net = Net(samples=9)
    with_target, without = (net.predict_step(batch, 0) for batch in ((inputs, target), inputs))
    assert with_target.samples_used == without.samples_used == 9
    assert with_target.mean.shape == (ROWS, CLASSES)
    assert with_target.mutual_information.max() > 0
    assert net.training  # as it was


def test_logits_of_labels_are_logits_even_in_the_unit_interval() -> None:
    class Small(Labels):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x.new_full((len(x), 2), 0.5), 0.5, training=True) * 0.5

    prediction = Small(samples=200).predict_step(torch.zeros(3, FEATURES), 0)
    # Logits 0 and 0.5, half of the time each: never below one half, where sigmoid(0) lies.
    expected = (torch.tensor(0.5).sigmoid() + 0.5) / 2
    torch.testing.assert_close(prediction.mean.mean(), expected, rtol=0.05, atol=0.0)


def test_a_gaussian_forward_splits_its_variance() -> None:
    prediction = Numbers(variance=True, samples=5).predict_step(class_rows().tensors[0], 0)
    assert prediction.task == "regression"
    assert (prediction.aleatoric > 0).all()
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


# ---- batches -----------------------------------------------------------------------------------


def test_batches_of_several_kinds_mean_the_same() -> None:
    net = Net(dropout=0.0).eval()
    x, y = class_rows().tensors
    losses = [net.loss(batch) for batch in ((x, y), [x, y], {"x": x, "y": y}, {"x": x, "label": y})]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_a_method_changes_how_a_batch_is_read() -> None:
    class Reversed(Net):
        def inputs_and_target(self, batch: Any) -> Any:
            target, inputs = batch
            return inputs, target

    x, y = class_rows().tensors
    net = Reversed(dropout=0.0)
    assert torch.equal(net.loss((y, x)), F.cross_entropy(net(x), y))
    assert net.predict_step is not None


def test_several_inputs_are_spread_over_forward() -> None:
    class Two(sl.StableMixin, L.LightningModule):
        task = "regression"

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    one = torch.ones(3)
    assert Two().loss((one, one, 2 * one)) == 0
    assert Two().loss({"left": one, "right": one, "target": 2 * one}) == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, FEATURES), "got a Tensor without one"),
        (object(), "a batch must be"),
        ((torch.zeros(2, FEATURES), torch.zeros(3).long()), r"got \(3,\)"),
        ((torch.zeros(2, FEATURES), torch.zeros(2, CLASSES)), r"got \(2, 3\)"),
    ],
)
def test_batches_that_cannot_be_read_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Net().loss(batch)


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": -1}, "samples must be a whole number >= 0, got -1"),
        ({"samples": 2.5}, "got 2.5"),
        ({"scheduler_interval": "batch"}, "'epoch' or 'step', got 'batch'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Net(**settings)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"task must be one of classification, .*, got 'ranking'"):
        Numbers(task="ranking")


def test_probabilities_under_the_default_loss_are_refused() -> None:
    class Softened(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    with pytest.raises(ModelError, match=r"Softened.forward must return logits"):
        trainer().fit(Softened(), loader())


@pytest.mark.parametrize("value", [torch.zeros(3), "loss", {"size": torch.zeros(())}])
def test_a_loss_that_is_no_scalar_is_refused(value: Any) -> None:
    class Wrong(Net):
        def loss(self, batch: Any) -> Any:
            return value

    with pytest.raises(ModelError, match=r"Wrong.loss must return a scalar tensor"):
        Wrong().training_step(next(iter(loader())), 0)


def test_a_gaussian_in_a_classification_is_refused() -> None:
    class Wrong(Net):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.net = GaussianHead(FEATURES)

    with pytest.raises(ModelError, match="a Gaussian output is a regression"):
        Wrong().loss(next(iter(loader())))


# ---- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_everything_follows_the_module_to_the_device(precision: Any) -> None:
    net, run = Net(samples=4), trainer(accelerator="gpu", devices=1, precision=precision)
    run.fit(net, loader(), loader())
    tested = run.test(net, loader(), verbose=False)[0]
    assert 0 <= tested["test/accuracy"] <= 1
    # Lightning hands predictions back on the CPU.
    assert run.predict(net, loader())[0].mean.device.type == "cpu"
