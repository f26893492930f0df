import pytest
import torch

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn import ConvNet
from stablelightning.pretraining import AuxiliaryTask, OrientedClasses

CORNER = torch.zeros(1, 1, 8, 8)
CORNER[..., 0, 1] = 1.0  # no turn and no mirror image of it is the same


def test_every_orientation_of_every_class_has_a_label_of_its_own():
    images = torch.cat([CORNER, CORNER])
    oriented, labels = OrientedClasses(area=1.0, lean=0.0)((images, torch.tensor([0, 2])))
    assert sorted(labels.tolist()) == [*range(8), *range(16, 24)]
    places = {
        int(label): int(image.argmax()) for image, label in zip(oriented, labels, strict=True)
    }
    assert len({place for label, place in places.items() if label < 8}) == 8


def test_the_same_orientation_has_the_same_label():
    batch = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    images, labels = OrientedClasses(area=1.0, lean=0.0)(batch)
    for number in range(8):
        turn, mirror = number % 4, number // 4
        ours = images[labels % 8 == number]
        source = batch[0].flip(3) if mirror else batch[0]
        torch.testing.assert_close(ours, torch.rot90(source, turn, (2, 3)), rtol=0, atol=1e-5)
        assert (labels[labels % 8 == number] // 8).tolist() == [0, 1, 2, 0, 1, 2]


def test_images_move_each_by_itself():
    images = torch.rand(1, 8, 8).expand(20, 1, 8, 8).clone()
    views, _ = OrientedClasses(area=0.5)((images, torch.zeros(20, dtype=torch.long)))
    assert len({tuple(view.flatten().tolist()) for view in views[:20]}) == 20


def test_an_auxiliary_task_takes_them():
    module = AuxiliaryTask(ConvNet(1, 3, channels=[4]), num_labels=24, labels=OrientedClasses())
    batch = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    assert module.loss(module.ready(batch)).isfinite()


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(2, 1, 8, 8),
        (torch.rand(2, 64), torch.tensor([0, 1])),
        (torch.rand(2, 1, 8, 6), torch.tensor([0, 1])),
        (torch.rand(2, 1, 8, 8), torch.rand(2)),
    ],
    ids=["no classes", "rows", "not square", "numbers"],
)
def test_what_has_no_orientations_or_classes(batch):
    with pytest.raises(DataError):
        OrientedClasses()(batch)


@pytest.mark.parametrize(("settings", "words"), [({"area": 0}, "area"), ({"lean": -1}, "lean")])
def test_settings_out_of_range(settings, words):
    with pytest.raises(RecipeError, match=f"{words} must be in"):
        OrientedClasses(**settings)
