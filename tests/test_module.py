"""StableModule: any network in a recipe, and back from its checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.errors import DataError, ModelError
from stablelightning.model.prediction import Prediction
from stablelightning.module import StableModule
from stablelightning.nn import MLP, ConvNet

RECIPE = """
model:
  class_path: stablelightning.module.StableModule
  init_args:
    task: classification
    samples: 4
    network:
      class_path: stablelightning.nn.MLP
      init_args: {in_features: 4, out_features: 3, hidden: [8], activation: torch.nn.GELU}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 0.02}
    scheduler:
      class_path: lightning.pytorch.cli.ReduceLROnPlateau
      init_args: {monitor: val/loss, patience: 3}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
"""


class Rows(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.fixture
def run_recipe(tmp_path: Path) -> Callable[..., LightningCLI]:
    def run(*overrides: str) -> LightningCLI:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE)
        root = f"--trainer.default_root_dir={tmp_path}"
        return LightningCLI(
            L.LightningModule,
            Rows,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            args=["fit", f"--config={path}", root, *overrides],
        )

    return run


def test_a_recipe_needs_no_python(run_recipe: Callable[..., LightningCLI]) -> None:
    cli = run_recipe("--model.init_args.network.init_args.hidden=[5]")
    model, trainer = cli.model, cli.trainer
    assert isinstance(model, StableModule)
    assert isinstance(model.network, MLP)
    assert model.network.head.in_features == 5
    assert "val/accuracy" in trainer.callback_metrics
    prediction = trainer.predict(model, cli.datamodule)[0]
    assert isinstance(prediction, Prediction)
    assert prediction.samples_used == 4


def test_an_optimizer_in_a_recipe_keeps_its_own_defaults(
    run_recipe: Callable[..., LightningCLI],
) -> None:
    group = run_recipe().trainer.optimizers[0].param_groups[0]
    assert group["lr"] == 0.02
    assert group["weight_decay"] == torch.optim.AdamW([torch.zeros(1)]).defaults["weight_decay"] > 0


def test_a_checkpoint_of_a_recipe_describes_its_network(
    run_recipe: Callable[..., LightningCLI],
) -> None:
    cli = run_recipe()
    path = cli.trainer.checkpoint_callback.best_model_path
    again = StableModule.load_from_checkpoint(path)
    inputs = torch.randn(3, 4)
    assert torch.equal(again.eval()(inputs), cli.model.eval()(inputs))
    assert again.predict_step(inputs, 0).samples_used == 4
    torch.load(path, weights_only=True)


def test_a_checkpoint_of_python_needs_the_network(tmp_path: Path) -> None:
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = StableModule(MLP(4, 3), task="classification", samples=6)
    trainer.fit(module, Rows())
    path = trainer.checkpoint_callback.best_model_path
    again = StableModule.load_from_checkpoint(path, network=MLP(4, 3))
    inputs = torch.randn(3, 4)
    assert torch.equal(again.eval()(inputs), module.eval()(inputs))
    assert again.predict_step(inputs, 0).samples_used == 6
    with pytest.raises(TypeError, match="network"):
        StableModule.load_from_checkpoint(path)


@pytest.mark.parametrize(
    ("network", "task", "target"),
    [
        (ConvNet(1, 3), "classification", torch.tensor([0, 1, 2, 1])),
        (ConvNet(1, 3), "multilabel", torch.tensor([[0, 1, 1]] * 4)),
        (ConvNet(1, 3), "regression", torch.randn(4, 3)),
        (ConvNet(1, variance=True), "regression", torch.randn(4)),
        (nn.Conv2d(1, 5, 1), "classification", torch.randint(5, (4, 8, 8))),
    ],
)
def test_every_task_has_a_loss_and_a_step(network: nn.Module, task: Any, target: Tensor) -> None:
    module = StableModule(network, task=task)
    batch = (torch.randn(4, 1, 8, 8), target)
    module.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert torch.isfinite(module.eval().test_step(batch, 0))


def test_the_network_says_what_a_batch_holds() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.scale * (left - right)

    module, one = StableModule(Two(), task="regression"), torch.ones(3)
    assert module.loss((3 * one, one, 2 * one)) == 0
    assert module.loss({"right": one, "target": 2 * one, "left": 3 * one}) == 0
    with pytest.raises(DataError, match=r"Two\.forward"):
        module.loss({"left": one, "target": one})


def test_what_is_no_plain_module_is_refused() -> None:
    with pytest.raises(ModelError, match="network must be a module, got type"):
        StableModule(MLP, task="classification")  # type: ignore[arg-type]
    inner = StableModule(MLP(4, 3), task="classification")
    with pytest.raises(ModelError, match="got StableModule, a LightningModule"):
        StableModule(inner, task="classification")
