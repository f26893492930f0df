"""Quarter turns: every image in all four, exactly, with its number."""

import pytest
import torch

from stablelightning.errors import DataError
from stablelightning.functional.rotate import QUARTERS, rotate_all_ways


def test_every_image_stands_in_all_four_turns():
    images = torch.randn(3, 2, 5, 5)
    turned, quarters = rotate_all_ways(images)
    assert turned.shape == (12, 2, 5, 5)
    for place, (image, number) in enumerate(zip(turned, quarters.tolist(), strict=True)):
        back = torch.rot90(image, -number, dims=(1, 2))
        assert torch.equal(back, images[place % 3])
    assert quarters.bincount().tolist() == [3] * QUARTERS


def test_one_turn_is_counter_clockwise():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    turned, _ = rotate_all_ways(image)
    assert turned[1, 0].tolist() == [[2, 4], [1, 3]]


@pytest.mark.parametrize("shape", [(4, 64), (4, 200, 2)])
def test_rows_and_sequences_are_refused_in_one_line(shape):
    with pytest.raises(
        DataError, match=r"rotation needs images \(N, C, H, W\), got inputs"
    ) as told:
        rotate_all_ways(torch.zeros(shape))
    assert "\n" not in str(told.value)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(DataError, match="square images, got 4 x 6 pixels"):
        rotate_all_ways(torch.zeros(2, 1, 4, 6))
