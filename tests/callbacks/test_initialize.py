import copy
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import stablelightning as sl
from stablelightning.callbacks import InitializeWeights
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.report.wandb import RunLogger, finish_run
from tests.callbacks.modules import quiet_trainer
from tests.processes import reports_of
from tests.report.offline import read_offline_run


def data(rows=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 12, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


class Net(L.LightningModule):
    def __init__(self, network=None):
        super().__init__()
        self.net = network or nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))
        self.seen = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].sum().item())
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(model, callback, loader=None, **settings):
    trainer = quiet_trainer(callback, max_epochs=1, **settings)
    trainer.fit(model, loader or DataLoader(data(), batch_size=8, shuffle=True))
    return trainer


def state(model):
    return copy.deepcopy(model.state_dict())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_fresh_weights_are_initialized_before_training():
    model, callback = Net(), InitializeWeights()
    fit(model, callback)
    assert callback.report["net.0"].distribution == "He normal"
    assert model.net[0].weight.std().item() == pytest.approx((2 / 12) ** 0.5, rel=0.15)
    assert not model.net[0].bias.any()


def test_loaded_weights_stay_and_a_new_head_is_initialized():
    model = Net()
    with torch.no_grad():
        model.net[0].weight.add_(1e-4)
    before = state(model)
    callback = InitializeWeights()
    fit(model, callback)
    assert callback.report.changed == ("net.2.weight", "net.2.bias")
    assert torch.equal(model.net[0].weight, before["net.0.weight"])
    assert torch.equal(model.net[0].bias, before["net.0.bias"])


def test_never_with_a_checkpoint_nor_in_a_second_fit(tmp_path):
    keeper = ModelCheckpoint(tmp_path, "last", save_top_k=1)
    trainer = quiet_trainer(keeper, max_epochs=1, enable_checkpointing=True)
    trainer.fit(Net(), DataLoader(data(), batch_size=8))
    saved = torch.load(keeper.best_model_path, weights_only=True)["state_dict"]
    model, callback = Net(), InitializeWeights(overwrite=True)
    trainer = quiet_trainer(callback, max_epochs=2)
    trainer.fit(
        model, DataLoader(data(), batch_size=8), ckpt_path=keeper.best_model_path, weights_only=True
    )
    assert callback.report is None
    assert same(state(model), saved)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, DataLoader(data(), batch_size=8))
    assert callback.report is None
    assert same(state(model), saved)


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_other_loops_are_left_alone(loop):
    class Whole(Net):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

        test_step = validation_step

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    model, callback = Whole(), InitializeWeights()
    before = state(model)
    getattr(quiet_trainer(callback), loop)(model, DataLoader(data(), batch_size=8))
    assert same(state(model), before)
    assert callback.report is None


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_batches_that_it_would_have_seen(workers):
    orders, generators = [], []
    for callbacks in ([], [InitializeWeights()]):
        torch.manual_seed(3)
        model = Net()
        settings = {"num_workers": workers, "generator": torch.Generator().manual_seed(1)}
        loader = DataLoader(data(), batch_size=8, shuffle=True, **settings)
        quiet_trainer(*callbacks, max_epochs=1).fit(model, loader)
        orders.append(model.seen)
        generators.append(torch.get_rng_state())
    assert orders[0] == orders[1]
    assert torch.equal(*generators)


def test_a_dataset_with_random_transforms_is_not_disturbed():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, place):
            return torch.randn(12), place % 2

    orders = []
    for callbacks in ([], [InitializeWeights()]):
        torch.manual_seed(3)
        model = Net()
        quiet_trainer(*callbacks, max_epochs=1).fit(model, DataLoader(Noisy(), batch_size=4))
        orders.append(model.seen)
    assert orders[0] == orders[1]


def test_a_seed_repeats_the_weights():
    weights = []
    for seed in (1, 1, 2):
        L.seed_everything(seed, verbose=False)
        model = Net()
        fit(model, InitializeWeights())
        weights.append(state(model))
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


# ---- data and modules of many kinds -------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        yield from data(16)


class Counting:
    """A loader with a position of its own."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < 3:
            self.position += 1
            yield data(8)[:]
        self.position = 0


class Reversed(torch.utils.data.Sampler):
    def __iter__(self):
        return iter(["c", "b", "a"])

    def __len__(self):
        return 3


class ByName(torch.utils.data.Dataset):
    """A dataset that only its sampler can index."""

    def __len__(self):
        return 3

    def __getitem__(self, name):
        return data(3)[{"a": 0, "b": 1, "c": 2}[name]]


LOADERS = {
    "shuffled": lambda: DataLoader(data(), batch_size=8, shuffle=True),
    "one row": lambda: DataLoader(data(), batch_size=1),
    "no batches": lambda: DataLoader([data(8)[:], data(8)[:]], batch_size=None),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "counting": Counting,
    "by name": lambda: DataLoader(ByName(), batch_size=1, sampler=Reversed()),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_kind_of_loader(name):
    plain, model, callback = Net(), Net(), InitializeWeights()
    model.load_state_dict(plain.state_dict())
    for seed_of, callbacks in ((plain, []), (model, [callback])):
        torch.manual_seed(4)
        quiet_trainer(*callbacks, max_epochs=1).fit(seed_of, LOADERS[name]())
    assert callback.report["net.0"].changed
    assert model.seen == plain.seen


def test_a_stream_that_is_read_once_is_left_for_training():
    batches = (data(8)[:] for _ in range(3))
    model, callback = Net(), InitializeWeights()
    before = state(model)
    with pytest.warns(StableLightningWarning, match="can be read only once") as caught:
        fit(model, callback, loader=batches)
    assert len([w for w in caught if issubclass(w.category, StableLightningWarning)]) == 1
    assert "\n" not in str(caught[0].message)
    assert len(model.seen) == 3
    assert same(state(model), before)


def test_several_loaders_at_once():
    class Two(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

        def inputs_and_target(self, batch):
            return batch["a"] if isinstance(batch, dict) else batch

    loaders = {"a": DataLoader(data(), batch_size=8), "b": DataLoader(data(), batch_size=4)}
    callback = InitializeWeights()
    fit(Two(), callback, loader=loaders)
    assert callback.report["net.0"].changed


def test_a_module_that_makes_its_layers_late():
    class Late(Net):
        def __init__(self, hook):
            super().__init__()
            self.net = None
            self.hook = hook

        def setup(self, stage):
            if self.hook == "setup":
                self.net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))

        def configure_model(self):
            if self.hook == "configure_model" and self.net is None:
                self.net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))

    for hook in ("setup", "configure_model"):
        model, callback = Late(hook), InitializeWeights()
        fit(model, callback)
        assert callback.report["net.0"].distribution == "He normal"
        assert "configure_model" not in vars(model)


def test_a_lazy_module_and_a_module_on_meta():
    for network in (
        nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.LazyLinear(2)),
        nn.Sequential(nn.Linear(12, 24, device="meta"), nn.ReLU(), nn.Linear(24, 2, device="meta")),
    ):
        model, callback = Net(network), InitializeWeights()
        fit(model, callback)
        assert len(callback.report.changed) == 4
        assert model.net[0].weight.shape == (24, 12)


def test_a_module_without_a_forward_is_watched_in_its_step():
    class Steps(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(12, 24), nn.Linear(24, 2)

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.head(F.gelu(self.layer(batch[0]))), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    callback = InitializeWeights()
    fit(Steps(), callback)
    assert callback.report["layer"].consumer == "gelu"


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_precisions(precision):
    model, callback = Net(), InitializeWeights()
    with warnings.catch_warnings():
        warnings.simplefilter("error", StableLightningWarning)
        fit(model, callback, precision=precision)
    assert len(callback.report.changed) == 4


def test_a_forward_that_takes_no_batch_is_called_with_the_modules_own_example():
    class Generator(Net):  # as of a GAN: noise in, and a step of its own
        def training_step(self, batch, batch_idx):
            self.optimizers().step()

    model = Generator(nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 2)))
    model.automatic_optimization, model.example_input_array = False, torch.randn(3, 5)
    fit(model, callback := InitializeWeights())
    assert [row.distribution for row in callback.report.rows] == ["He normal", "Glorot uniform"]


def test_what_cannot_run_is_said_in_one_line_and_training_goes_on():
    class Unreadable(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, place):
            raise OSError("disk on fire")

    model = Net()
    before = state(model)
    callback = InitializeWeights()
    with (
        pytest.warns(StableLightningWarning, match="training goes on: disk on fire"),
        pytest.raises(OSError, match="disk on fire"),
    ):
        fit(model, callback, loader=DataLoader(Unreadable(), batch_size=2))
    assert same(state(model), before)
    assert callback.report is None


def test_wrong_settings_are_refused_at_once():
    with pytest.raises(RecipeError, match="did you mean 'auto'"):
        InitializeWeights("aut")
    with pytest.raises(RecipeError, match="true or false"):
        InitializeWeights(overwrite=["net"])


def test_it_is_among_the_recommended_callbacks():
    assert isinstance(sl.recommended_callbacks()[0], InitializeWeights)


def test_the_report_is_a_table_of_the_wandb_run(tmp_path):
    logger = RunLogger("initialize", save_dir=tmp_path, mode="offline")
    fit(Net(), InitializeWeights(), logger=logger)
    finish_run(logger)
    assert "initialize/layers/path" in read_offline_run(tmp_path).metrics
    table = next(tmp_path.rglob("media/table/initialize/layers*.json"))
    assert "He normal" in table.read_text()


# ---- two processes ------------------------------------------------------------------------------


def _report(rank):
    seen = {}
    for name, make in {
        "plain": Net,
        "lazy": lambda: Net(nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.LazyLinear(2))),
    }.items():
        torch.manual_seed(100 + rank)
        model, callback = make(), InitializeWeights("lsuv")

        class Look(L.Callback):
            def setup(self, trainer, pl_module, stage):
                self.before_wrapping = state(pl_module)

        look = Look()
        trainer = quiet_trainer(callback, look, strategy="ddp", devices=2, max_epochs=1)
        trainer.fit(model, DataLoader(data(), batch_size=8))
        seen[name] = look.before_wrapping, callback.report is not None
    return seen


def test_two_processes_with_different_seeds_start_equal(tmp_path):
    first, second = reports_of(_report, tmp_path)
    for name in ("plain", "lazy"):
        assert same(first[name][0], second[name][0])
        assert (first[name][1], second[name][1]) == (True, False)
        assert first[name][0]["net.0.bias"].count_nonzero() == 0
