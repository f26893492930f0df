"""Decoders reach any shape from any features, and keep rows apart."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stablelightning.errors import ModelError, RecipeError
from stablelightning.nn import ConvDecoder, DenseDecoder

SIDES = st.integers(1, 40)
FEATURES = st.one_of(
    st.tuples(st.integers(1, 20)),
    st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
)


@settings(max_examples=40, deadline=None)
@given(features=FEATURES, channels=st.integers(1, 3), height=SIDES, width=SIDES)
def test_an_image_of_any_size_grows_from_any_features(features, channels, height, width):
    decoder = ConvDecoder(features, (channels, height, width), width=8, most=16)
    assert decoder(torch.randn(2, *features)).shape == (2, channels, height, width)


@pytest.mark.parametrize(
    ("features", "image", "first"),
    [((512,), (3, 224, 224), 7), ((64,), (1, 8, 8), 4), ((8, 2, 2), (1, 8, 8), 2)],
)
def test_each_step_at_most_doubles(features, image, first):
    decoder = ConvDecoder(features, image)
    sides = [first]
    for module in decoder.steps:
        if isinstance(module, nn.Upsample):
            sides.append(module.size[0])
    assert sides[-1] == image[1]
    assert all(b <= 2 * a for a, b in pairwise(sides))


def test_no_row_depends_on_another():
    decoder = ConvDecoder((5,), (1, 9, 7), width=8).train()
    features = torch.randn(3, 5)
    alone = torch.cat([decoder(row[None]) for row in features])
    torch.testing.assert_close(decoder(features), alone)


def test_every_parameter_is_used():
    for decoder, features in (
        (ConvDecoder((6,), (2, 12, 12), width=8), torch.randn(2, 6)),
        (DenseDecoder((6,), (3, 2)), torch.randn(2, 6)),
    ):
        decoder(features).sum().backward()
        assert all(p.grad is not None for p in decoder.parameters())


def test_dense_outputs_have_the_shape_of_inputs():
    assert DenseDecoder((4, 3), (7,), hidden=[])(torch.zeros(2, 4, 3)).shape == (2, 7)


def test_what_is_no_image_is_refused():
    with pytest.raises(ModelError, match="use DenseDecoder"):
        ConvDecoder((4,), (64,))
    with pytest.raises(RecipeError, match="width must be >= 1"):
        ConvDecoder((4,), (1, 8, 8), width=0)
