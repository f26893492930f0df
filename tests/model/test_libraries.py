"""Models by name where a library is not installed, and what each library is asked for."""

import pytest
import torch

from stablelightning.errors import MissingPackageError, RecipeError
from stablelightning.model import libraries
from stablelightning.model.libraries import library_model
from stablelightning.optional import require

pytest.importorskip("torchvision")
pytest.importorskip("timm")


@pytest.fixture
def without(monkeypatch):
    """Take a library away."""

    def take(*gone):
        def missing(name, *, extra):
            if name.partition(".")[0] in gone:
                raise MissingPackageError(f"{name} must be installed for this, and it is not")
            return require(name, extra=extra)

        monkeypatch.setattr(libraries, "require", missing)

    return take


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet18", "torchvision/resnet18"),
        ("timm/resnet18", "timm/resnet18"),
        ("convnext_atto", "timm/convnext_atto"),
        ("convnext_atto.d2_in1k", "timm/convnext_atto.d2_in1k"),
        ("r3d_18", "torchvision/r3d_18"),
        ("fcn_resnet50", "torchvision/fcn_resnet50"),
    ],
)
def test_torchvision_is_asked_first(name, found):
    assert library_model(name).name == found


def test_the_other_library_does_where_one_is_missing(without):
    without("torchvision")
    assert library_model("resnet18").name == "timm/resnet18"
    with pytest.raises(RecipeError, match="did you mean resnet18"):
        library_model("resnett18")
    without("timm")
    assert library_model("resnet18").name == "torchvision/resnet18"
    with pytest.raises(RecipeError, match="did you mean resnet18"):
        library_model("resnett18")


@pytest.mark.parametrize("name", ["resnet18", "resnett18"])
def test_a_library_that_is_asked_for_must_be_there(without, name):
    without("torchvision")
    with pytest.raises(MissingPackageError, match="torchvision"):
        library_model(f"torchvision/{name}")
    without("timm")
    with pytest.raises(MissingPackageError, match="timm"):
        library_model(f"timm/{name}")
    without("timm", "torchvision")
    with pytest.raises(MissingPackageError):
        library_model(name)


def test_segmentation_is_as_it_was_trained_where_weights_come():
    model = library_model("fcn_resnet50")
    with torch.device("meta"):
        assert model.make({}, for_weights=True).aux_classifier is not None
        assert model.make({}, for_weights=False).aux_classifier is None
        small = library_model("lraspp_mobilenet_v3_large")
        assert small.make({}, for_weights=True).classifier is not None
