import math
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.errors import RecipeError
from stablelightning.functional.contrastive import nt_xent
from stablelightning.nn import MLP, ConvNet
from stablelightning.nn.augment import ImageViews, RowViews
from stablelightning.pretraining.contrastive import SimCLR
from tests.callbacks.modules import quiet_trainer
from tests.processes import WORLD, reports_of

IMAGES = (1, 8, 8)


class Twice(nn.Module):
    """Views that can be foreseen."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.drawn += 1
        return rows + 0.1 * self.drawn


def simclr(network: nn.Module | None = None, **settings) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(network or ConvNet(1, 10, channels=[4], dropout=0.0), **settings)


def images(rows: int = 24, shape=IMAGES) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(5))


def loader(rows: int = 24, batch_size: int = 8, shape=IMAGES) -> DataLoader:
    labels = torch.full((rows,), -1)  # of no class: whoever looks at them fails
    return DataLoader(TensorDataset(images(rows, shape), labels), batch_size=batch_size)


def test_the_loss_is_that_of_two_views():
    module = simclr(views=Twice(), temperature=0.2)
    batch = module.ready(images())
    module.eval()
    parts = module.loss([batch, torch.zeros(24)])
    z = [module.embeddings(batch + shift) for shift in (0.1, 0.2)]
    torch.testing.assert_close(parts["loss"], nt_xent(*z, temperature=0.2))
    alike = torch.nn.functional.cosine_similarity(
        torch.cat(z)[:, None], torch.cat(z)[None], dim=2
    ).fill_diagonal_(-2)
    partners = torch.arange(48).roll(24)
    assert parts["top1"] == (alike.argmax(1) == partners).float().mean()


def test_only_the_loss_has_a_gradient():
    module = simclr()
    parts = module.loss(module.ready(images()))
    parts["loss"].backward()
    assert [name for name, part in parts.items() if part.requires_grad] == ["loss"]
    assert all(p.grad is not None for p in module.parameters())


def test_collapse_is_seen():
    module = simclr()
    module.ready(images())
    module.projection = nn.Sequential(nn.Linear(4, 8, bias=False))
    nn.init.zeros_(module.projection[0].weight)
    with torch.no_grad():
        parts = module.loss(images())
    assert float(parts["uniformity"]) == pytest.approx(0.0)
    assert float(parts["loss"]) == pytest.approx(math.log(47), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "shape", "kind"),
    [
        (lambda: ConvNet(1, 10, channels=[4]), (1, 8, 8), ImageViews),
        (lambda: ConvNet(3, 10, channels=[4]), (3, 9, 7), ImageViews),
        (lambda: MLP(6, 3, hidden=[8]), (6,), RowViews),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.ReLU()), (5, 4), RowViews),
    ],
    ids=["grey", "colour", "rows", "sequences"],
)
def test_views_fit_what_is_seen(network, shape, kind):
    module = simclr(network())
    batch = module.ready(images(shape=shape))
    assert isinstance(module.views, kind)
    assert module.loss(batch)["loss"].isfinite()


class Standardized(L.LightningDataModule):
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.15)

    def train_dataloader(self) -> DataLoader:
        return loader(shape=(3, 8, 8))


def test_black_is_what_the_data_module_makes_of_it():
    module = simclr(ConvNet(3, 10, channels=[4]))
    quiet_trainer(max_steps=1).fit(module, datamodule=Standardized())
    assert module.views.zero == pytest.approx(-2.0)


def test_it_learns_to_find_partners():
    network = MLP(16, 3, hidden=[32], dropout=0.0)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    module = simclr(network, optimizer=optimizer, temperature=0.2)
    batch = module.ready(images(32, (16,)))

    def measured() -> dict:
        torch.manual_seed(1)
        with torch.no_grad():
            return module.eval().loss(batch)

    before = measured()
    quiet_trainer(max_epochs=25).fit(module.train(), loader(32, 32, (16,)))
    after = measured()
    assert after["loss"] < before["loss"] - 0.5
    assert after["top1"] > before["top1"] + 0.1


def test_everything_is_logged_and_validation_repeats():
    module = simclr()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(), loader())
    names = {"loss", "top1", "alignment", "uniformity"}
    assert {f"val/{name}" for name in names} <= set(trainer.callback_metrics)
    assert {f"train/{name}" for name in names} <= set(trainer.callback_metrics)
    first, again = (trainer.validate(module, loader(), verbose=False) for _ in range(2))
    assert first == again


def test_a_last_batch_of_one_row_is_left_out():
    module = simclr()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(9), loader(9))
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert all(p.isfinite().all() for p in module.parameters())
    assert module.loss(images(1)) is None


def test_a_checkpoint_gives_the_same_features_and_loss(tmp_path):
    module = simclr()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fresh = ConvNet(1, 10, channels=[4], dropout=0.0)
    again = SimCLR.load_from_checkpoint(tmp_path / "last.ckpt", network=fresh).eval()
    module.eval()
    torch.testing.assert_close(again(images()), module(images()))
    assert again.hparams["temperature"] == 0.5
    torch.manual_seed(3)
    expected = module.loss(images())["loss"]
    torch.manual_seed(3)
    torch.testing.assert_close(again.loss(images())["loss"], expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"embedding": 0}, "embedding must be a whole number >= 1"),
        ({"hidden": 0.5}, "hidden must be a whole number >= 1"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(RecipeError, match=words):
        simclr(**settings)


# ---- two processes ------------------------------------------------------------------------------


class Counts(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            self.loss = pl_module.train().loss(batch)["loss"].item()


def report(rank: int) -> dict:
    module = simclr()
    count = Counts()
    trainer = quiet_trainer(count, max_epochs=1, strategy="ddp", devices=WORLD)
    trainer.fit(module, loader(10, 4), loader(9, 4))
    return {
        "weights": [p.detach() for p in module.parameters()],
        "loss": count.loss,
        "val": trainer.callback_metrics["val/loss"].item(),
    }


def test_two_processes_train_one_module(tmp_path):
    first, second = reports_of(report, tmp_path)
    assert all(map(torch.equal, first["weights"], second["weights"]))
    assert first["val"] == second["val"]
    # The last batch has one row on each process, and each other's row to be told from.
    assert first["loss"] > 0
    assert second["loss"] > 0
