import lightning as L
import pytest
import torch
from sklearn.datasets import load_digits

from stablelightning.data import DigitsData
from stablelightning.data.digits import NO_CLASS
from stablelightning.errors import DataError, RecipeError
from tests.data.small import TRAINER, Linear, rows_of


@pytest.fixture(scope="module")
def data():
    module = DigitsData()
    module.setup()
    return module


def loaders(data):
    return data.train_dataloader(), data.val_dataloader(), data.test_dataloader()


def test_held_out_digits_are_in_no_split_and_all_in_their_own_set(data):
    source = load_digits().target
    splits = [rows_of(loader)[1] for loader in loaders(data)]
    assert sum(len(target) for target in splits) == (source < 8).sum()
    assert all(set(target.tolist()) == set(range(8)) for target in splits)
    _, target = rows_of(data.ood_dataloaders()["held_out_digits"])
    assert len(target) == (source >= 8).sum()
    assert set(target.tolist()) == {NO_CLASS}


def test_other_classes_are_numbered_anew_in_order():
    data = DigitsData(held_out=(0, 3))
    assert data.num_classes == data.num_outputs == 8
    assert data.class_names == ("1", "2", "4", "5", "6", "7", "8", "9")
    _, target = rows_of(data.test_dataloader())
    digits = load_digits().target[data.test_rows.numpy()]
    assert [data.class_names[number] for number in target.tolist()] == [str(d) for d in digits]


def test_nothing_held_out_gives_ten_classes_and_one_other_set():
    data = DigitsData(held_out=())
    assert data.num_classes == 10
    assert list(data.ood_dataloaders()) == ["rotated_digits"]
    assert sum(len(loader.dataset) for loader in loaders(data)) == 1797


def test_training_pixels_have_mean_zero_and_deviation_one(data):
    inputs, _ = rows_of(data.train_dataloader())
    assert inputs.mean().abs() < 1e-5
    assert (inputs.std(correction=0) - 1).abs() < 1e-5


def test_test_rows_lead_back_to_the_pixels_of_the_source(data):
    inputs, _ = rows_of(data.test_dataloader())
    train, _ = rows_of(data.train_dataloader())
    source = torch.tensor(load_digits().data, dtype=torch.float32)
    scaled = source[data.test_rows]
    # One shift and one scale for all pixels: white (0) and black (16) tell both.
    white, black = inputs[scaled == 0].unique(), inputs[scaled == 16].unique()
    assert len(white) == len(black) == 1
    torch.testing.assert_close(inputs, white + scaled / 16 * (black - white), atol=1e-5, rtol=0)
    assert len(train) + len(inputs) < len(source)


def test_rotated_digits_are_the_test_digits_turned_by_a_quarter(data):
    image = DigitsData(image=True)
    inputs, target = rows_of(image.test_dataloader())
    turned, same = rows_of(image.ood_dataloaders()["rotated_digits"])
    assert turned.shape == inputs.shape == (len(target), 1, 8, 8)
    assert torch.equal(turned[0, 0, 7], inputs[0, 0, :, 0])  # the left edge becomes the bottom
    assert torch.equal(turned.rot90(-1, dims=(2, 3)), inputs)
    assert torch.equal(same, target)
    flat, _ = rows_of(data.ood_dataloaders()["rotated_digits"])
    assert torch.equal(flat, turned.flatten(1))


def test_the_image_changes_the_shape_and_nothing_else(data):
    inputs, target = rows_of(data.test_dataloader())
    images, same = rows_of(DigitsData(image=True).test_dataloader())
    assert data.num_features == 64
    assert torch.equal(images.flatten(1), inputs)
    assert torch.equal(same, target)


def test_setup_again_changes_nothing(data):
    before = rows_of(data.test_dataloader())
    for stage in ("fit", "test", "predict", None):
        data.setup(stage)
    after = rows_of(data.test_dataloader())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_test_split_leaves_no_rotated_digits():
    data = DigitsData(test_fraction=0.0)
    assert list(data.ood_dataloaders()) == ["held_out_digits"]
    assert len(data.test_rows) == 0


def test_a_checkpoint_brings_the_scale_of_its_training(tmp_path):
    trained = DigitsData(seed=1)
    trainer = L.Trainer(**TRAINER, default_root_dir=tmp_path)
    model = Linear(64, 8)
    trainer.fit(model, datamodule=trained)
    path = trainer.checkpoint_callback.best_model_path
    other = DigitsData(seed=2)
    L.Trainer(**TRAINER, default_root_dir=tmp_path).test(
        model, datamodule=other, ckpt_path=path, weights_only=True, verbose=False
    )
    fresh = DigitsData(seed=2)
    assert torch.equal(other.test_rows, fresh.test_rows)
    black = rows_of(other.test_dataloader())[0].max()
    assert black != rows_of(fresh.test_dataloader())[0].max()
    assert black == rows_of(trained.train_dataloader())[0].max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": (8, 8)}, r"distinct digits from 0 to 9, got \[8, 8\]"),
        ({"held_out": (10,)}, r"distinct digits from 0 to 9, got \[10\]"),
        ({"held_out": tuple(range(9))}, r"at least two digits"),
        (
            {"labels_per_class": 0},
            r"must be a whole number >= 1, got 0; null uses",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        DigitsData(**settings)


def test_few_labels_leave_the_rest_of_training_unlabelled(data):
    few = DigitsData(labels_per_class=5)
    inputs, target = rows_of(few.train_dataloader())
    assert torch.bincount(target).tolist() == [5] * 8
    rest = torch.cat(list(few.unlabelled_dataloader()))
    # Scaled as with all labels, and together the same training images.
    whole, _ = rows_of(data.train_dataloader())
    assert torch.equal(torch.cat([inputs, rest]).unique(dim=0), whole.unique(dim=0))
    for loader, same in zip(loaders(few)[1:], loaders(data)[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rows_of(loader), rows_of(same), strict=True))
    assert data.unlabelled_dataloader() is None


def test_few_labels_of_some_digits_only():
    few = DigitsData(held_out=(0, 1, 2, 3, 4), labels_per_class=3)
    _, target = rows_of(few.train_dataloader())
    assert few.class_names == ("5", "6", "7", "8", "9")
    assert torch.bincount(target).tolist() == [3] * 5


def test_more_labels_than_there_are_images_are_refused():
    with pytest.raises(DataError, match=r"got 500 labels and \d+ rows of class '0'"):
        DigitsData(labels_per_class=500).setup()
