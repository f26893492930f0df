"""What images must look like for a network: read from where each library keeps it."""

import copy
import json
import pickle
from dataclasses import asdict

import pytest
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.model.preprocessing import (
    Preprocessing,
    preprocessing_of,
    preprocessing_of_torchvision,
)

HALVES = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 64, "bicubic", 0.9)


def test_it_goes_through_a_files_metadata():
    assert Preprocessing(**json.loads(json.dumps(asdict(HALVES)))) == HALVES


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"std": (1.0, 1.0, 0.0)}, "one number for each channel"),
        ({"mean": (0.5,)}, "one number for each channel"),
        ({"mean": (), "std": ()}, "one number for each channel"),
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"image_size": 2.5}, "image_size must be a whole number"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"crop_share": 0.0}, "crop_share must lie"),
        ({"crop_share": 1.5}, "crop_share must lie"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, rule):
    with pytest.raises(RecipeError, match=rule):
        Preprocessing(**(asdict(HALVES) | change))


@pytest.mark.parametrize(
    ("size", "share", "resized"), [(224, 224 / 256, 256), (299, 299 / 342, 342), (32, 1.0, 32)]
)
def test_no_pixel_is_lost_to_rounding(size, share, resized):
    assert Preprocessing((0.5,), (0.5,), size, crop_share=share).resize_size == resized


def test_the_outermost_word_counts():
    inner, outer = nn.Linear(2, 2), nn.Sequential()
    inner.preprocessing = HALVES
    outer.append(inner)
    assert preprocessing_of(outer) == HALVES
    outer.preprocessing = Preprocessing((0.1,), (0.2,), 8)
    assert preprocessing_of(outer).image_size == 8


def test_a_module_called_preprocessing_is_no_description():
    net = nn.Sequential(nn.Linear(2, 2))
    net.preprocessing = nn.Flatten()
    assert preprocessing_of(net) is None


def test_it_stays_with_copies():
    net = nn.Linear(2, 2)
    net.preprocessing = HALVES
    assert preprocessing_of(copy.deepcopy(net)) == HALVES
    assert preprocessing_of(pickle.loads(pickle.dumps(net))) == HALVES


def test_a_timm_model_says_it_itself():
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=12)
    found = preprocessing_of(nn.Sequential(net))
    assert found == Preprocessing((0.5,) * 3, (0.5,) * 3, 224, "bicubic", 0.9)


def test_a_timm_transformer_for_small_images_sees_small_images():
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=12, img_size=32)
    assert preprocessing_of(net).image_size == 32


def test_torchvisions_transforms_are_read():
    models = pytest.importorskip("torchvision.models")
    transforms = models.get_model_weights("resnet18").DEFAULT.transforms()
    found = preprocessing_of_torchvision(nn.Identity(), transforms)
    assert found == Preprocessing(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, "bilinear", 0.875
    )


def test_transforms_that_do_not_normalise_say_nothing():
    models = pytest.importorskip("torchvision.models")
    transforms = models.get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.transforms()
    assert preprocessing_of_torchvision(nn.Identity(), transforms) is None
