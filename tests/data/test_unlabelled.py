import pickle

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from stablelightning.data import UnlabelledImages
from stablelightning.errors import DataError, RecipeError
from tests.data.small import TRAINER


def paint(folder, count, *, red):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (12, 10), (red, number, 9)).save(folder / f"{number:02d}.png")
    return folder


def plain(root, **settings):
    own = {"image_size": 8, "num_workers": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    return UnlabelledImages(root, **{"augment": False, **own, **settings})


def reds(loader):
    return sorted((255 * torch.cat(list(loader))[:, 0, 4, 4]).round().int().tolist())


def test_every_image_at_any_depth_is_in_one_split(tmp_path):
    paint(tmp_path / "a" / "deep", 12, red=50)
    paint(tmp_path / "b", 8, red=200)
    data = plain(tmp_path)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [len(loader.dataset) for loader in loaders] == [16, 2, 2]
    seen = [red for loader in loaders for red in reds(loader)]
    assert sorted(seen) == [50] * 12 + [200] * 8
    batch = next(iter(loaders[0]))
    assert (type(batch), batch.dtype, batch.shape) == (torch.Tensor, torch.float32, (16, 3, 8, 8))
    assert len(data.test_files) == len(data.test_rows) == 2


def test_several_roots_add_up_and_an_image_counts_once(tmp_path):
    one, two = paint(tmp_path / "one", 6, red=10), paint(tmp_path / "two", 4, red=20)
    data = plain(one, more_roots=(str(two), str(tmp_path)), val_fraction=0.0, test_fraction=0.0)
    assert reds(data.train_dataloader()) == [10] * 6 + [20] * 4


def test_only_training_images_are_augmented(tmp_path):
    paint(tmp_path / "a", 10, red=10)
    data = plain(tmp_path, augment=True)
    random = {type(step).__name__ for step in data.part("train").transform.transforms}
    still = {type(step).__name__ for step in data.part("val").transform.transforms}
    assert "RandomHorizontalFlip" in random - still


class Reconstruct(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def training_step(self, batch, batch_idx):
        return (self.layer(batch) - batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_it_trains_and_its_checkpoint_holds_how_images_were_prepared(tmp_path):
    paint(tmp_path / "a", 20, red=10)
    data = plain(tmp_path / "a", std=(0.5, 0.5, 0.5))
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    trainer.fit(Reconstruct(), datamodule=data)
    assert "val/loss" in trainer.callback_metrics
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["UnlabelledImages"]["preprocessing"]["std"] == [0.5, 0.5, 0.5]
    other = UnlabelledImages("gone")
    other.load_state_dict(saved["UnlabelledImages"])
    assert other.preprocessing == data.preprocessing
    assert plain("gone").state_dict() == {}


def test_it_travels_and_survives_a_recipe(tmp_path):
    paint(tmp_path / "a", 20, red=10)
    data = plain(tmp_path, seed=3)
    twin = pickle.loads(pickle.dumps(data))
    assert twin.test_files == data.test_files
    parser = ArgumentParser()
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    settings = {"class_path": "UnlabelledImages", "init_args": dict(data.hparams)}
    written = parser.dump(parser.parse_object({"data": settings}))
    assert "!!" not in written
    built = parser.instantiate(parser.parse_string(written)).data
    assert built.test_files == data.test_files


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        ("absent", {}, r"root must exist, got .*absent"),
        ("a", {"more_roots": ("nowhere",)}, r"more_roots must exist, got 'nowhere'"),
        ("empty", {}, r"root must hold images .* got none in .*empty"),
        ("single", {}, r"at least two images, got 1"),
    ],
)
def test_unusable_folders_are_refused_in_setup_in_one_line(tmp_path, place, settings, message):
    paint(tmp_path / "a", 3, red=10)
    paint(tmp_path / "single", 1, red=10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        plain(tmp_path / place, **settings).setup("fit")
    assert "\n" not in str(caught.value)


def test_settings_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="unreadable must be refuse or skip, got 'ignore'"):
        plain("x", unreadable="ignore")
