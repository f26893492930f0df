import lightning as L
import pytest
from jsonargparse import Namespace
from torch import nn

from stablelightning.callbacks.described import check_described, described, plain
from stablelightning.data import DigitsData
from stablelightning.errors import RecipeError
from stablelightning.pretraining import SimCLR

DIGITS = "stablelightning.data.DigitsData"


@pytest.mark.parametrize(
    "description",
    [
        {"class_path": DIGITS, "init_args": {"batch_size": 7}},
        {"class_path": "DigitsData", "init_args": {"batch_size": 7}},
        {"class_path": DIGITS, "init_args": {"batch_size": 3}, "batch_size": 7},
        {"class_path": DIGITS, "batch_size": 7},
    ],
    ids=["dotted", "short", "overridden on the line", "line alone"],
)
def test_a_description_is_read_as_in_a_recipe(description):
    made = described("data", description, L.LightningDataModule)
    assert type(made) is DigitsData
    assert made.batch_size == 7


def test_a_path_alone_is_enough():
    assert described("data", DIGITS, L.LightningDataModule).batch_size == 64


def test_what_is_described_inside_is_made_too():
    description = {
        "class_path": "stablelightning.pretraining.SimCLR",
        "init_args": {
            "views": {"class_path": "torch.nn.Identity"},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}},
        },
    }
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    made = described("objective", description, L.LightningModule, network=network)
    assert isinstance(made, SimCLR)
    assert made.network is network
    assert isinstance(made.views, nn.Identity)
    assert made._stable_settings.optimizer(network.parameters()).defaults["lr"] == 0.25


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (None, "must be a description with a class_path"),
        ({}, "must be a description with a class_path"),
        ("", "must be a description with a class_path"),
        ({"class_path": 3}, "must be a description with a class_path"),
        ("stablelightning.data.NoSuchData", "must name a class, got 'stablelightning.data.NoSuch"),
        ("nowhere.Data", "must name a class, got 'nowhere.Data'"),
        ("NoSuchData", "must be a LightningDataModule, got 'NoSuchData'; write its whole"),
        ("torch.nn.Linear", "must be a LightningDataModule, got 'torch.nn.Linear'; name one"),
        ({"class_path": DIGITS, "init_args": {"batchsize": 3}}, "DigitsData: .*batchsize"),
        ({"class_path": DIGITS, "init_args": {"batch_size": "x"}}, "DigitsData: .*batch_size"),
        ({"class_path": DIGITS, "init_args": {"batch_size": 0}}, "batch_size must be"),
    ],
)
def test_what_describes_nothing(description, words):
    with pytest.raises(RecipeError, match=words) as caught:
        described("data", description, L.LightningDataModule)
    assert "\n" not in str(caught.value)


def test_what_only_the_program_has_must_be_taken():
    with pytest.raises(RecipeError, match="a class that takes a network"):
        described("objective", DIGITS, L.LightningDataModule, network=nn.ReLU())


def test_what_the_parser_made_becomes_plain():
    made = {"class_path": "a.B", "init_args": Namespace(c=Namespace(d=[Namespace(e=1)]))}
    assert plain(made) == {"class_path": "a.B", "init_args": {"c": {"d": [{"e": 1}]}}}
    assert plain(None) is None


def test_checking_looks_for_no_class():
    check_described("data", {"class_path": "nowhere.Data"})
    with pytest.raises(RecipeError, match="data must be a description"):
        check_described("data", 3)
