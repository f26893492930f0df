import warnings
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stablelightning.data import ImageFolderData
from stablelightning.data.image_base import IMAGENET
from stablelightning.errors import DataError, RecipeError, StableLightningWarning
from stablelightning.model.preprocessing import Preprocessing
from tests.data.small import TRAINER, Linear, rows_of

#: Every image of a class has one colour, so that a label can be read off the pixels.
COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "emu": (0, 0, 255)}


def paint(folder, count=10, colour=(9, 9, 9), suffix=".png", size=(20, 16)):
    folder.mkdir(parents=True)
    for number in range(count):
        save(Image.new("RGB", size, colour), folder / f"{number:02d}{suffix}")


def save(image, path):
    """With a note in it that no other file has: copies would be told."""
    note = PngInfo()
    note.add_text("Comment", str(path))
    image.save(path, pnginfo=note, comment=str(path))


def tree(root, classes=tuple(COLOURS), count=10):
    for name in classes:
        paint(root / name, count, COLOURS[name])
    return root


def images(root, **settings):
    return ImageFolderData(root, **{"image_size": 8, "num_workers": 0, **settings})


def plain(root, **settings):
    """Without normalisation and augmentation: pixels stay in [0, 1]."""
    return images(root, mean=(0, 0, 0), std=(1, 1, 1), augment=False, **settings)


def assert_labels_match_colours(data, loader):
    inputs, target = rows_of(loader)
    for pixels, number in zip(inputs, target.tolist(), strict=True):
        colour = [round(255 * value) for value in pixels[:, 4, 4].tolist()]
        assert tuple(colour) == COLOURS[data.class_names[number]]


def test_one_tree_is_split_by_class(tmp_path):
    data = plain(tree(tmp_path))
    assert data.class_names == ("cat", "dog", "emu")
    assert data.num_classes == data.num_outputs == 3
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    targets = [rows_of(loader)[1] for loader in loaders]
    assert [torch.bincount(target).tolist() for target in targets] == [[7] * 3, [1] * 3, [2] * 3]
    for loader in loaders:
        assert_labels_match_colours(data, loader)


def test_test_rows_and_test_files_name_the_same_images(tmp_path):
    data = plain(tree(tmp_path))
    listed = sorted(str(file) for file in tmp_path.rglob("*.png"))
    assert [listed[row] for row in data.test_rows.tolist()] == data.test_files


def test_split_folders_are_taken_as_they_are(tmp_path):
    tree(tmp_path / "train", count=6)
    tree(tmp_path / "val", count=2)
    # A test folder without a class must not shift the numbers of those after it.
    tree(tmp_path / "test", classes=("cat", "emu"), count=3)
    data = plain(tmp_path)
    with pytest.warns(StableLightningWarning, match="test has no images of dog, which are trained"):
        data.setup()
    assert len(data.train_dataloader().dataset) == 18
    assert len(data.val_dataloader().dataset) == 6
    assert data.test_rows.tolist() == list(range(6))
    assert all("/test/" in path for path in data.test_files)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert_labels_match_colours(data, loader)
    assert rows_of(data.test_dataloader())[1].tolist() == [0, 0, 0, 2, 2, 2]


def test_a_missing_split_folder_is_drawn_from_training(tmp_path):
    tree(tmp_path / "train")
    tree(tmp_path / "test", count=2)
    data = plain(tmp_path, val_fraction=0.2)
    assert len(data.val_dataloader().dataset) == 6
    assert len(data.train_dataloader().dataset) == 24
    assert len(data.test_dataloader().dataset) == 6


def test_a_class_may_be_called_train(tmp_path):
    paint(tmp_path / "train")
    paint(tmp_path / "plane")
    assert plain(tmp_path).class_names == ("plane", "train")


def test_hidden_folders_and_other_files_are_passed_over(tmp_path):
    tree(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = plain(tmp_path)
    assert data.class_names == ("cat", "dog", "emu")
    splits = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert sum(len(loader.dataset) for loader in splits) == 30


def test_inputs_are_normalised_colour_squares(tmp_path):
    paint(tmp_path / "a", colour=(255, 0, 51))
    paint(tmp_path / "b", colour=(255, 0, 51), suffix=".jpg")
    data = images(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.1), image_size=12)
    inputs, _ = rows_of(data.test_dataloader())
    assert type(inputs) is torch.Tensor
    assert (inputs.dtype, inputs.shape) == (torch.float32, (4, 3, 12, 12))
    expected = torch.tensor([2.0, -1.0, -3.0])[:, None, None].expand(3, 12, 12)
    torch.testing.assert_close(inputs[0], expected)
    train, _ = rows_of(data.train_dataloader())
    assert train.shape[1:] == (3, 12, 12)


def test_grey_images_fill_three_channels(tmp_path):
    tree(tmp_path)
    for file in (tmp_path / "cat").iterdir():
        save(Image.new("L", (10, 10), 51), file)
    inputs, target = rows_of(plain(tmp_path).test_dataloader())
    torch.testing.assert_close(inputs[target == 0], torch.full((2, 3, 8, 8), 0.2))


def test_only_training_images_are_augmented(tmp_path):
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            save(Image.fromarray(pixels), tmp_path / name / f"{number}.png")

    def distinct(loader):
        return len(rows_of(loader)[0].flatten(1).unique(dim=0))

    augmented, still = images(tmp_path), images(tmp_path, augment=False)
    assert distinct(augmented.train_dataloader()) > 10
    assert distinct(augmented.test_dataloader()) == 1
    assert distinct(augmented.val_dataloader()) == 1
    assert distinct(still.train_dataloader()) == 1


def test_worker_processes_give_the_same_images(tmp_path):
    tree(tmp_path)
    alone, helped = plain(tmp_path), plain(tmp_path, num_workers=1)
    for one, two in zip(
        rows_of(alone.test_dataloader()), rows_of(helped.test_dataloader()), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: None, r"at least two classes, got none"),
        (lambda root: tree(root, classes=("cat",)), r"at least two classes, got cat"),
        (
            lambda root: (tree(root), (root / "yak").mkdir()),
            r"must hold images .*got none in .*yak",
        ),
        (
            lambda root: (tree(root / "train"), tree(root / "valid")),
            r"must be named val and test, got .*valid",
        ),
        (
            lambda root: (tree(root / "train", classes=("cat", "dog")), tree(root / "test")),
            r"same classes, got emu under test and not under train \(cat, dog\)",
        ),
        (
            lambda root: (tree(root / "train"), (root / "test").mkdir()),
            r"test' must hold class folders, got none",
        ),
        (lambda root: tree(root, count=1), r"got 3 rows, of which none is left for val"),
    ],
)
def test_unusable_folders_are_refused_in_setup_in_one_line(tmp_path, build, message):
    build(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        images(tmp_path, val_fraction=0.3, test_fraction=0.3).setup("fit")
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"got 'absent', .*looked in {tmp_path}"):
        images("absent").setup("fit")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    tree(tmp_path)
    data = plain(tmp_path)
    broken = data.test_files[2]
    with open(broken, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(DataError, match=rf"image must be readable, got '{broken}'"):
        rows_of(data.test_dataloader())


def test_damaged_images_are_refused_before_training_or_left_out_and_counted(tmp_path):
    tree(tmp_path)
    files = [tmp_path / "cat" / "03.png", tmp_path / "emu" / "04.png"]
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"got 2 of 30 .*{files[0]} .*{files[1]} "):
        plain(tmp_path).setup("fit")
    data = plain(tmp_path, unreadable="skip")
    with pytest.warns(StableLightningWarning, match="left out: 2 of 30"):
        data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert sum(len(loader.dataset) for loader in loaders) == 28
    for loader in loaders:
        assert_labels_match_colours(data, loader)


def test_a_class_of_damaged_images_only_is_refused(tmp_path):
    tree(tmp_path)
    for file in (tmp_path / "dog").iterdir():
        file.write_bytes(b"")
    with (
        pytest.warns(StableLightningWarning, match="left out: 10 of 30"),
        pytest.raises(DataError, match=r"must hold images .*got none in .*dog"),
    ):
        plain(tmp_path, unreadable="skip").setup("fit")


def test_photographs_of_kinds_that_are_not_read_are_counted(tmp_path):
    tree(tmp_path)
    (tmp_path / "cat" / "IMG_1.HEIC").touch()
    (tmp_path / "dog" / "raw").mkdir()
    (tmp_path / "dog" / "raw" / "2.dng").touch()
    with pytest.warns(StableLightningWarning, match=r"passed over in .*: 1 \.dng, 1 \.heic; conv"):
        plain(tmp_path).setup("fit")


def test_the_same_image_in_two_splits_is_told(tmp_path):
    tree(tmp_path)
    data = plain(tmp_path)
    data.setup()
    twin = tmp_path / "cat" / "99.png"
    twin.write_bytes((tmp_path / "cat" / "00.png").read_bytes())
    found = set()
    for seed in range(8):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            (data := plain(tmp_path, seed=seed)).setup()
        splits = {
            name
            for name in ("train", "val", "test")
            for file in data.part(name).images.files
            if file.endswith(("cat/00.png", "cat/99.png"))
        }
        assert bool(told) == (len(splits) == 2)
        found.add(len(splits))
    assert found == {1, 2}  # the seeds showed both


def test_few_labels_leave_the_rest_of_training_unlabelled(tmp_path):
    whole, few = plain(tree(tmp_path)), plain(tmp_path, labels_per_class=2)
    assert_labels_match_colours(few, few.train_dataloader())
    files, rest = few.part("train").images.files, few.unlabelled_part().files
    assert (len(files), len(rest)) == (6, 15)
    assert sorted([*files, *rest]) == sorted(whole.part("train").images.files)
    assert few.test_files == whole.test_files
    assert whole.unlabelled_dataloader() is None
    batch = next(iter(few.unlabelled_dataloader()))
    assert type(batch) is torch.Tensor


class Prepared(Linear):
    """A network whose weights want images of their own kind."""

    def __init__(self, wanted):
        super().__init__(3 * wanted.image_size**2, 3)
        self.net.preprocessing = wanted


WANTED = Preprocessing((0.5,) * 3, (0.25,) * 3, image_size=6, crop_share=0.5)


def test_images_are_prepared_as_the_weights_of_the_network_want_them(tmp_path):
    data = ImageFolderData(tree(tmp_path / "old"), num_workers=0, augment=False)
    assert data.preprocessing == IMAGENET
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    trainer.fit(Prepared(WANTED), datamodule=data)
    assert data.preprocessing == WANTED
    inputs, target = rows_of(data.test_dataloader())
    assert inputs.shape[1:] == (3, 6, 6)
    expected = torch.tensor([2.0, -2.0, -2.0])[:, None, None].expand(3, 6, 6)
    torch.testing.assert_close(inputs[target == 0][0], expected)
    resize = data.part("test").images.transform.transforms[0]
    assert resize.size == [12]  # half of it is the crop
    # Predicting needs no network that says so: the checkpoint does. What is set here comes first.
    state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    later = ImageFolderData("gone", mean=(0, 0, 0))
    later.load_state_dict(state["ImageFolderData"])
    assert later.preprocessing == replace(WANTED, mean=(0, 0, 0))


def test_a_network_for_grey_images_is_refused_in_words(tmp_path):
    data = ImageFolderData(tree(tmp_path), num_workers=0)
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    with pytest.raises(DataError, match="give three channels, got a network for 1"):
        trainer.fit(Prepared(Preprocessing((0.5,), (0.5,), image_size=6)), datamodule=data)


def test_a_folder_that_lies_one_deeper_is_pointed_out(tmp_path):
    tree(tmp_path / "photos")
    with pytest.raises(DataError, match=rf"got photos in .*; give '{tmp_path}/photos'"):
        plain(tmp_path).setup()


def test_class_names_need_no_look_at_the_images(tmp_path):
    tree(tmp_path)
    (tmp_path / "cat" / "00.png").write_bytes(b"")
    assert plain(tmp_path).num_outputs == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels_per_class": 0}, r"labels_per_class must be a whole number >= 1, got 0"),
        ({"unreadable": "ignore"}, r"unreadable must be refuse or skip, got 'ignore'"),
        ({"image_size": 0}, r"image_size must be a whole number >= 1, got 0"),
        ({"std": (1.0, 0.0, 1.0)}, r"std must be > 0, got .*std=\[1.0, 0.0, 1.0\]"),
        ({"mean": (0.5,)}, r"three numbers each"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        ImageFolderData("x", **settings)


def test_new_images_are_predicted_without_classes(tmp_path):
    data = plain(tree(tmp_path / "old"))
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    model = Linear(3 * 8 * 8, 3)
    trainer.fit(model, datamodule=data)
    path = trainer.checkpoint_callback.best_model_path
    paint(tmp_path / "new" / "deep", count=2, colour=COLOURS["dog"])
    paint(tmp_path / "new" / "flat", count=1, colour=COLOURS["cat"], suffix=".JPG")
    # The training images are gone: the classes are in the checkpoint.
    elsewhere = plain("gone", predict_path=tmp_path / "new")
    answers = torch.cat(
        L.Trainer(**TRAINER, default_root_dir=tmp_path).predict(
            model, datamodule=elsewhere, ckpt_path=path, weights_only=True
        )
    )
    assert elsewhere.class_names == ("cat", "dog", "emu")
    assert [path.split("/")[-2] for path in elsewhere.predict_files] == ["deep", "deep", "flat"]
    colours = torch.tensor([COLOURS["dog"], COLOURS["dog"]]) / 255
    expected = model(colours[:, :, None, None].expand(2, 3, 8, 8))
    torch.testing.assert_close(answers[:2], expected.detach())
    assert len(answers) == 3


def test_a_single_new_image_can_be_predicted(tmp_path):
    paint(tmp_path / "new", count=2)
    data = plain("gone", predict_path=tmp_path / "new" / "01.png")
    data.setup("predict")
    assert len(data.predict_dataloader().dataset) == 1


@pytest.mark.parametrize(("place", "message"), [("absent", "must exist"), (".", "hold images")])
def test_new_images_that_are_not_there_are_refused_in_setup(tmp_path, place, message):
    with pytest.raises(DataError, match=message):
        plain("gone", predict_path=tmp_path / place).setup("predict")


def test_classes_that_are_not_the_checkpoints_are_refused(tmp_path):
    data = plain(tree(tmp_path / "old"))
    data.setup()
    state = data.state_dict()
    other = plain(tree(tmp_path / "other", classes=("cat", "emu")))
    other.load_state_dict(state)
    with pytest.raises(DataError, match=r"trained on \(cat, dog, emu\), got cat, emu in"):
        other.setup()
    late = plain(tmp_path / "other")
    late.setup()
    with pytest.raises(DataError, match=r"trained on \(cat, dog, emu\), got cat, emu in"):
        late.load_state_dict(state)


def test_images_that_were_never_listed_have_no_state():
    data = images("gone")
    assert data.state_dict() == {}
    data.load_state_dict({})
