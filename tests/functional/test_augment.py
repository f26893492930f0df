import math

import pytest
import torch

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.augment import (
    random_blur,
    random_colours,
    random_corruption,
    random_crops,
)

IMAGE_FUNCTIONS = [random_crops, random_colours, random_blur]
LUMA = torch.tensor([0.299, 0.587, 0.114])


def ramp(rows: int = 64, side: int = 16) -> torch.Tensor:
    """The first channel is the place across, the second the place down, in [-1, 1]."""
    centres = (2 * torch.arange(side) + 1) / side - 1
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([across, down]).expand(rows, -1, -1, -1).clone()


@pytest.mark.parametrize("function", IMAGE_FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (3, 3, 12, 20), (2, 4, 9, 7), (1, 3, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_stay(function, shape, dtype):
    images = torch.rand(shape).to(dtype)
    before = images.clone()
    views = function(images)
    assert (views.shape, views.dtype) == (images.shape, dtype)
    assert views.isfinite().all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("function", [*IMAGE_FUNCTIONS, random_corruption])
def test_every_row_is_drawn_by_itself_and_the_seed_decides(function):
    images = torch.rand(3, 8, 8).expand(40, -1, -1, -1).clone()
    if function is random_corruption:
        images = torch.rand(40, 3, 8, 8)
    torch.manual_seed(1)
    views = function(images)
    torch.manual_seed(1)
    assert torch.equal(function(images), views)
    assert not torch.equal(function(images), views)
    changes = (views - images).flatten(1)
    assert len({tuple(row) for row in changes.tolist()}) > 10


@pytest.mark.parametrize("function", IMAGE_FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("wrong", [torch.rand(4, 64), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)])
def test_what_is_no_image_is_refused(function, wrong):
    with pytest.raises(DataError, match="floating point \\(N, channels, height, width\\)"):
        function(wrong)


# ---- windows ------------------------------------------------------------------------------------


def test_the_whole_window_is_the_image():
    images = torch.rand(6, 3, 8, 10, dtype=torch.float64)
    views = random_crops(images, area=(1.0, 1.0), ratio=(1.0, 1.0))
    # An image that is not square has no square window of its own area.
    square = random_crops(images[..., :8], area=(1.0, 1.0), ratio=(1.0, 1.0))
    torch.testing.assert_close(square, images[..., :8], rtol=0, atol=1e-6)
    assert views.shape == images.shape


def test_windows_have_the_area_and_ratio_that_were_drawn_and_lie_inside():
    images = ramp(400)
    views = random_crops(images, area=(0.3, 0.5), ratio=(0.5, 2.0))
    # On a ramp the slope is the size of the window.
    width = (views[:, 0, 8, 12] - views[:, 0, 8, 4]) / 1.0
    height = (views[:, 1, 12, 8] - views[:, 1, 4, 8]) / 1.0
    area = width * height
    assert area.min() > 0.28
    assert area.max() < 0.52
    ratio = width / height
    assert ratio.min() < 0.6
    assert ratio.max() > 1.7
    assert ratio.log().abs().max() < math.log(2.05)
    assert views.abs().max() <= images.abs().max() + 1e-5
    centre = views[:, :, 7:9, 7:9].mean((2, 3))
    assert centre.std(0).min() > 0.1  # they lie in many places
    assert ((centre.abs() + torch.stack([width, height], 1)) < 1.05).all()


def test_a_flip_mirrors_left_and_right_only():
    images = ramp(200)
    views = random_crops(images, area=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5)
    mirrored = views[:, 0, 0, 0] > 0
    assert 60 < mirrored.sum() < 140
    torch.testing.assert_close(views[mirrored], images[mirrored].flip(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(views[~mirrored], images[~mirrored], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (12, 24)])
def test_a_turn_keeps_angles(shape):
    """What was a line across and one down stand at right angles after it, in pixels."""
    height, width = shape
    down, across = torch.meshgrid(
        torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
    )
    images = torch.stack([across, down]).expand(50, -1, -1, -1)
    views = random_crops(images, area=(0.2, 0.2), ratio=(1.0, 1.0), rotation=20)
    y, x = height // 2, width // 2
    right = views[:, :, y, x + 1] - views[:, :, y, x]
    below = views[:, :, y + 1, x] - views[:, :, y, x]
    inside = (right.norm(dim=1) > 0.2) & (below.norm(dim=1) > 0.2)
    cosine = torch.cosine_similarity(right, below)[inside]
    assert inside.sum() > 25
    assert cosine.abs().max() < 1e-4
    angle = torch.atan2(right[inside, 1], right[inside, 0]).rad2deg()
    assert angle.abs().max() < 20.01
    assert angle.abs().max() > 12


# ---- colours ------------------------------------------------------------------------------------


def test_nothing_is_changed_where_nothing_is_asked():
    images = torch.rand(5, 3, 8, 8)
    for settings in ({"strength": 0.0}, {"probability": 0.0}):
        torch.testing.assert_close(random_colours(images, grey=0.0, **settings), images)
    assert random_blur(images, probability=0.0) is images
    assert torch.equal(random_corruption(images, share=0.0), images)


def test_grey_has_the_brightness_of_the_colours():
    images = torch.rand(5, 3, 8, 8)
    views = random_colours(images, probability=0.0, grey=1.0)
    expected = torch.einsum("c,nchw->nhw", LUMA, images)
    for channel in range(3):
        torch.testing.assert_close(views[:, channel], expected, rtol=1e-3, atol=1e-4)


def test_a_turned_hue_and_saturation_leave_the_brightness_of_grey_images():
    grey = torch.rand(30, 1, 6, 6).expand(-1, 3, -1, -1)
    views = random_colours(grey, strength=1.0, probability=1.0, grey=0.0)
    torch.testing.assert_close(views[:, 0], views[:, 2], rtol=1e-3, atol=1e-4)  # still grey
    assert (views - grey).abs().amax((1, 2, 3)).min() > 1e-4  # but of another brightness


def test_brightness_is_a_factor_from_black_wherever_black_is():
    torch.manual_seed(0)
    plain = random_colours(torch.rand(1, 3, 6, 6).expand(20, -1, -1, -1), probability=1.0)
    torch.manual_seed(0)
    images = torch.rand(1, 3, 6, 6).expand(20, -1, -1, -1)
    mean, std = 0.45, 0.22
    standardized = random_colours((images - mean) / std, probability=1.0, zero=-mean / std)
    torch.testing.assert_close(standardized * std + mean, plain, rtol=1e-4, atol=1e-5)


def test_grey_channels_alone_have_brightness_and_contrast():
    images = torch.rand(200, 1, 6, 6)
    views = random_colours(images, strength=0.5, probability=1.0)
    brightness = views.mean((1, 2, 3)) / images.mean((1, 2, 3))
    contrast = views.std((1, 2, 3)) / images.std((1, 2, 3)) / brightness
    for factor in (brightness, contrast):
        assert 0.6 - 1e-3 <= float(factor.min()) < 0.7
        assert 1.3 < float(factor.max()) <= 1.4 + 1e-3


# ---- blur and corruption ------------------------------------------------------------------------


def test_a_blur_is_the_gaussian_that_was_asked_for():
    point = torch.zeros(1, 2, 15, 15, dtype=torch.float64)
    point[..., 7, 7] = 1.0
    blurred = random_blur(point, probability=1.0, sigma=(1.5, 1.5))
    steps = torch.arange(-7, 8).double()
    bell = torch.exp(-0.5 * (steps / 1.5) ** 2) * (steps.abs() <= 5)
    bell = bell / bell.sum()
    torch.testing.assert_close(blurred[0, 1], torch.outer(bell, bell), rtol=1e-5, atol=1e-8)


def test_some_are_blurred_each_by_its_own():
    images = torch.rand(100, 1, 8, 8)
    views = random_blur(images, probability=0.5)
    same = (views == images).flatten(1).all(1)
    assert 25 < same.sum() < 75
    smoother = views[~same].std((1, 2, 3)) / images[~same].std((1, 2, 3))
    assert smoother.max() <= 1.001
    assert smoother.std() > 0.05


def test_what_comes_in_is_from_the_same_column():
    rows = torch.arange(50.0)[:, None] + 1000 * torch.arange(4)
    views = random_corruption(rows, share=0.4)
    assert torch.equal(
        views.div(1000, rounding_mode="floor"), rows.div(1000, rounding_mode="floor")
    )
    changed = (views != rows).double().mean()
    assert 0.25 < float(changed) < 0.5
    assert random_corruption(rows[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("function", "settings", "words"),
    [
        (random_crops, {"area": (0.0, 1.0)}, "area must be two numbers above 0 and at most 1"),
        (random_crops, {"area": (0.9, 0.5)}, "area must be"),
        (random_crops, {"ratio": (-1.0, 1.0)}, "ratio must be two numbers above 0"),
        (random_crops, {"flip": 1.5}, "flip must be in"),
        (random_colours, {"strength": -0.1}, "strength must be in"),
        (random_colours, {"grey": 2.0}, "grey must be in"),
        (random_blur, {"probability": 2.0}, "probability must be in"),
        (random_blur, {"sigma": (0.0, 1.0)}, "sigma must be"),
        (random_corruption, {"share": 1.1}, "share must be in"),
    ],
)
def test_settings_out_of_range(function, settings, words):
    with pytest.raises(RecipeError, match=words):
        function(torch.rand(2, 3, 8, 8), **settings)
