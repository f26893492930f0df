"""A backbone in a recipe: trained, kept, and made again without its weights."""

import shutil

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import InitializeWeights
from stablelightning.cli.lightning import StableCLI
from stablelightning.cli.main import main
from stablelightning.errors import CheckpointError
from stablelightning.mixin import StableMixin
from stablelightning.model.backbone_file import save_backbone
from stablelightning.model.backbones import backbone
from stablelightning.module import StableModule

pytest.importorskip("timm")

BACKBONE = "stablelightning.model.backbones.backbone"
SETTINGS = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
}
NAME = "timm/vit_tiny_patch16_224"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights in the working folder."""
    monkeypatch.chdir(tmp_path)
    net = backbone(NAME, weights=None, settings=SETTINGS)
    architecture = {"class_path": BACKBONE, "init_args": {"name": NAME, "settings": SETTINGS}}
    return save_backbone(net, tmp_path / "backbone.safetensors", architecture=architecture)


def recipe(path, **arguments):
    written = {
        "seed_everything": 3,
        "model": {
            "class_path": "stablelightning.module.StableModule",
            "init_args": {
                "task": "classification",
                "samples": 4,
                "network": {
                    "class_path": BACKBONE,
                    "init_args": {"num_outputs": 8, "dropout": 0.3, **arguments},
                },
            },
        },
        "data": {"class_path": "DigitsData", "init_args": {"image": True, "batch_size": 32}},
        "trainer": {
            "max_epochs": 1,
            "limit_train_batches": 2,
            "limit_val_batches": 1,
            "limit_test_batches": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path.write_text(yaml.safe_dump(written))
    return path


BY_NAME = {"name": NAME, "settings": SETTINGS, "weights": "backbone.safetensors"}
BY_FILE = {"name": "backbone.safetensors"}


def loaded(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("arguments", [BY_NAME, BY_FILE], ids=["name and file", "file"])
def test_a_checkpoint_can_do_without_the_weights(tmp_path, weights, arguments):
    StableCLI(["fit", f"--config={recipe(tmp_path / 'recipe.yaml', **arguments)}"])
    best, again = tmp_path / "checkpoints" / "best.ckpt", tmp_path / "again.yaml"
    shutil.move(tmp_path / "config.yaml", again)
    weights.unlink()

    module = StableModule.load_from_checkpoint(best)
    wanted = loaded(best)["state_dict"]
    assert all(torch.equal(value, wanted[key]) for key, value in module.state_dict().items())
    assert "network.blocks.0.attn.qkv.weight" in wanted
    assert type(module.network).__name__ == "VisionTransformer"

    StableCLI(["test", f"--config={again}", f"--ckpt_path={best}"])
    resumed = StableCLI(
        ["fit", f"--config={again}", f"--ckpt_path={best}", "--trainer.max_epochs=2"]
    )
    assert resumed.trainer.global_step == 4
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"backbone\.safetensors"):  # from the start, it does
        StableCLI(["fit", f"--config={again}"])


def test_a_run_predicts_without_the_weights(tmp_path, weights, capsys):
    path = recipe(tmp_path / "recipe.yaml", **BY_FILE)
    assert main(["run", str(path), f"--output={tmp_path / 'out'}"]) == 0
    weights.unlink()
    assert main(["predict", str(tmp_path / "out"), f"--output={tmp_path / 'p.parquet'}"]) == 0
    assert (tmp_path / "p.parquet").is_file()


def test_the_loaded_weights_are_what_training_starts_from(tmp_path, weights):
    path = recipe(tmp_path / "recipe.yaml", **BY_NAME)
    cli = StableCLI([f"--config={path}"], run=False)
    source = backbone(str(weights))
    kernel = cli.model.network.blocks[1].attn.qkv.weight
    assert torch.equal(kernel, source.blocks[1].attn.qkv.weight)
    assert cli.model.network.head.out_features == 8


class Own(StableMixin, L.LightningModule):
    """A user's module, which makes its own backbone."""

    def __init__(self, weights: str, **kwargs):
        super().__init__(task="classification", **kwargs)
        self.net = backbone(NAME, weights=weights, num_outputs=3, settings=SETTINGS)

    def forward(self, x):
        return self.net(x)


class Images(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=8)


def trained(module, tmp_path, *callbacks):
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=Images())
    return trainer


def test_ones_own_module_is_loaded_without_them_too(tmp_path, weights):
    trainer = trained(Own(str(weights)), tmp_path)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    weights.unlink()
    assert Own.load_from_checkpoint(tmp_path / "own.ckpt").net.head.out_features == 3
    with pytest.raises(CheckpointError, match="a file that exists"):  # it may bring not enough
        Own.load_from_checkpoint(tmp_path / "own.ckpt", strict=False)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        trainer.lightning_module.load_from_checkpoint(tmp_path / "own.ckpt")


def test_initializing_before_training_leaves_what_was_loaded(tmp_path, weights):
    module = Own(str(weights))
    before = {n: p.detach().clone() for n, p in module.net.named_parameters()}
    module.net.head = torch.nn.Linear(12, 3)
    fresh = module.net.head.weight.detach().clone()
    seen = {}

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update({n: p.detach().clone() for n, p in pl_module.net.named_parameters()})

    trained(module, tmp_path, InitializeWeights(), Look())
    left = [name for name, value in before.items() if not torch.equal(value, seen[name])]
    assert left == ["head.weight"]  # the bias was zero, and is
    assert not torch.equal(seen["head.weight"], fresh)
