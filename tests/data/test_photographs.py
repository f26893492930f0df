"""Every usual kind of image file comes out as upright red, green and blue."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from stablelightning.data.photographs import (
    IMAGE_SUFFIXES,
    images_under,
    read_photograph,
    trouble_with,
)
from stablelightning.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)
_ORIENTATION = 0x0112


def corners(image):
    """Which corner is red: the picture is blue elsewhere."""
    width, height = image.size
    places = {
        "top left": (1, 1),
        "top right": (width - 2, 1),
        "bottom left": (1, height - 2),
        "bottom right": (width - 2, height - 2),
    }
    return {name for name, place in places.items() if image.getpixel(place)[0] > 128}


#: How the sensor saw an upright picture that is red in its top left corner, for each orientation.
SEEN = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.rotate(180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.rotate(-90, expand=True),
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_photograph_is_turned_upright(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    path = tmp_path / f"photo{suffix}"
    SEEN[orientation](upright).save(path, exif=exif, quality=95)
    image = read_photograph(path, least_side=30)
    assert image.size == (48, 32)
    assert corners(image) == {"top left"}


def test_a_damaged_exif_costs_no_pixels(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (16, 16), RED).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert read_photograph(path).getpixel((3, 3))[0] > 250


def saved(tmp_path, image, suffix=".png", **settings):
    path = tmp_path / f"image{suffix}"
    image.save(path, **settings)
    return read_photograph(path)


def test_grey_levels_and_single_bits_become_colours(tmp_path):
    assert saved(tmp_path, Image.new("L", (4, 4), 51)).getpixel((0, 0)) == (51, 51, 51)
    assert saved(tmp_path, Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_is_followed(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 255, 0, 51])
    for suffix in (".png", ".gif", ".bmp"):
        assert saved(tmp_path, image, suffix).getpixel((2, 2)) == (255, 0, 51)
    # Index 1 is transparent now, whatever its colour.
    assert saved(tmp_path, image, transparency=1).getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),  # not the black that lies under it
        ("RGBA", (255, 0, 51, 255), (255, 0, 51)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (51, 255), (51, 51, 51)),
    ],
)
def test_what_is_transparent_shows_white(tmp_path, mode, colour, expected):
    assert saved(tmp_path, Image.new(mode, (4, 4), colour)).getpixel((1, 1)) == expected


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    levels = np.array([[0, 257 * 51, 257 * 204, 65535]] * 2, dtype=np.uint16)
    image = saved(tmp_path, Image.fromarray(levels), suffix)
    assert [image.getpixel((x, 1)) for x in range(4)] == [(v,) * 3 for v in (0, 51, 204, 255)]


def test_thirty_two_bits_are_refused_as_their_range_is_unknown(tmp_path):
    path = tmp_path / "levels.tif"
    Image.fromarray(np.full((3, 3), 0.5, dtype=np.float32)).save(path)
    with pytest.raises(DataError, match=r"levels\.tif' \(32-bit numbers of unknown range; save"):
        read_photograph(path)


def test_print_colours_become_light(tmp_path):
    image = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), ".jpg", quality=95)
    red, green, blue = image.getpixel((5, 5))
    assert red > 240
    assert max(green, blue) < 15


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    grid = torch.arange(800 * 640).reshape(800, 640) % 640 * 255 // 640
    path = tmp_path / "large.jpg"
    Image.fromarray(grid.to(torch.uint8).numpy()).save(path, quality=95)
    whole, small = read_photograph(path), read_photograph(path, least_side=100)
    assert whole.size == (640, 800)
    assert small.size == (160, 200)  # a quarter; an eighth would be less than 100
    one, other = (
        np.asarray(i.resize((32, 40), Image.Resampling.BOX), float) for i in (whole, small)
    )
    assert np.abs(one - other).max() < 4


def png_bytes():
    memory = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(memory, "png")
    return memory.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an image, or of an unknown kind"),
        (b"<html>not found</html>", "not an image, or of an unknown kind"),
        (png_bytes()[:1000], ""),
        (None, "no such file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_reason(tmp_path, content, said):
    path = tmp_path / "photo.png"
    if content is not None:
        path.write_bytes(content)
    assert said in trouble_with(path)
    with pytest.raises(DataError, match=rf"readable, got '{path}' \({said}.*skip") as caught:
        read_photograph(path)
    assert "\n" not in str(caught.value)


def test_images_are_found_at_any_depth_in_the_order_of_their_names(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", ".hidden/d.png", "__MACOSX/e.png", "._b.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    found = [file.removeprefix(f"{tmp_path}/") for file in images_under(tmp_path)]
    assert found == ["a.png", "b.JPG", "sub/c.webp"]


def test_every_ending_is_one_that_pillow_reads():
    Image.init()
    assert set(IMAGE_SUFFIXES) <= set(Image.registered_extensions())
