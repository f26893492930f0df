import pickle

import pytest
import torch

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn.augment import ImageViews, RowViews


def leans(views: torch.Tensor) -> bool:
    """Whether lines that went down the image are turned."""
    shift = views[:, 0, -3:].mean(1).argmax(1) - views[:, 0, :3].mean(1).argmax(1)
    return bool(shift.abs().max() > 0)


def test_digits_are_not_mirrored_unless_that_is_asked():
    left = torch.zeros(200, 1, 8, 8)
    left[..., :4] = 1.0  # ink on the left stays left of what is not

    def mirrored(**settings):
        views = ImageViews(area=1.0, rotation=0.0, colour=0.0, **settings)(left)
        return (views[..., 0] < views[..., -1]).any()

    assert not mirrored()
    assert mirrored(flip=0.5)


def test_colour_images_are_mirrored():
    left = torch.zeros(100, 3, 8, 8)
    left[..., :4] = 1.0
    views = ImageViews(area=1.0, colour=0.0)(left)
    share = (views[:, 0, 0, 0] < views[:, 0, 0, -1]).double().mean()
    assert 0.3 < float(share) < 0.7


def test_small_grey_images_lean_and_no_others():
    for shape, expected in [((50, 1, 8, 8), True), ((50, 1, 32, 32), False)]:
        lines = torch.zeros(shape)
        lines[..., shape[-1] // 2] = 1.0
        assert leans(ImageViews(area=1.0, colour=0.0)(lines)) is expected


def test_large_images_are_blurred_and_small_ones_not():
    for side, expected in [(64, True), (32, False)]:
        noise = torch.randn(20, 1, side, side)
        views = ImageViews(area=1.0, colour=0.0)
        flat = views(noise).std((1, 2, 3)) / noise.std((1, 2, 3))
        sharp = ImageViews(area=1.0, colour=0.0, blur=0.0)(noise).std((1, 2, 3))
        assert (float(flat.min()) < 0.5 * float((sharp / noise.std((1, 2, 3))).min())) is expected


def test_it_draws_in_eval_and_pickles():
    views = pickle.loads(pickle.dumps(ImageViews(flip=0.5).eval()))
    images = torch.rand(4, 3, 8, 8)
    assert not torch.equal(views(images), views(images))
    assert "flip=0.5" in repr(views)


def test_rows_are_corrupted_and_noise_is_added():
    rows = torch.randn(40, 6)
    some = (RowViews(share=0.5)(rows) != rows).double().mean()
    assert 0.3 < float(some) < 0.7
    noise = RowViews(share=0.0, noise=0.1)(rows) - rows
    assert 0.08 < float(noise.std()) < 0.12
    assert torch.equal(RowViews(share=0.0)(rows), rows)


def test_rows_are_no_images():
    with pytest.raises(DataError, match="RowViews"):
        ImageViews()(torch.rand(4, 64))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (ImageViews, {"area": 0.0}, "area must be in"),
        (ImageViews, {"flip": -1.0}, "flip must be in"),
        (ImageViews, {"rotation": 400.0}, "rotation must be in"),
        (ImageViews, {"colour": 2.0}, "colour must be in"),
        (ImageViews, {"blur": 2.0}, "blur must be in"),
        (RowViews, {"share": -0.1}, "share must be in"),
        (RowViews, {"noise": -1.0}, "noise must be"),
    ],
)
def test_settings_out_of_range(kind, settings, words):
    with pytest.raises(RecipeError, match=words):
        kind(**settings)
