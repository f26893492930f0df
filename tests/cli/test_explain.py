"""One line out of what jsonargparse says, on a parser small enough to see through."""

from collections.abc import Callable

import pytest
from torch import nn

from stablelightning.cli.explain import explain, parameters, settings
from stablelightning.cli.lightning import StableArgumentParser
from stablelightning.errors import RecipeError


class Widget:
    def __init__(self, size: int = 1, net: nn.Module | None = None):
        pass


class Gadget(Widget):
    def __init__(self, colour: str = "red", act: Callable[[], nn.Module] = nn.ReLU, **kwargs):
        super().__init__(**kwargs)


@pytest.fixture
def parser():
    parser = StableArgumentParser()
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--group.rate", type=float | None, default=None)
    parser.add_subclass_arguments(Widget, "widget", required=False)
    return parser


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--cuont=3", "there is no setting 'cuont'; did you mean 'count'?"),
        ("--group.rte=3", "there is no setting 'group.rte'; did you mean 'group.rate'?"),
        ("--zzz=3", "there is no setting 'zzz'; known there are"),
        ("--count=few", "count must be a whole number, got 'few'."),
        ("--count=a", "count must be a whole number, got 'a'."),  # jsonargparse drops an article
        ("--group.rate=low", "group.rate must be a number or null, got 'low'."),
        ("--widget=Gadget --widget.size=big", "widget.size must be a whole number, got 'big'."),
        ("--widget=Gadget --widget.colur=b", "Gadget has no setting 'colur' (under widget); did"),
        ("--widget=Gadget --widget.net=Linera", "widget.net must be a class that can be imported"),
        ("--widget=Gadget --widget.act=ReLUU", "got 'ReLUU'; did you mean 'ReLU'?"),
        ("--widget=nowhere.Widget", "No module named 'nowhere'"),
        ("stray", "settings must be given as --key=value, got 'stray'"),
    ],
)
def test_refusals_in_one_line(parser, line, said):
    with pytest.raises(RecipeError) as caught:
        parser.parse_args(line.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_abbreviations_are_misspellings(parser):
    with pytest.raises(RecipeError, match="did you mean 'count'"):
        parser.parse_args(["--coun=3"])


def test_an_unknown_message_is_flattened_and_cut(parser):
    line = explain("something\n  new " + "x" * 500, parser)
    assert line.startswith("something new x")
    assert len(line) < 310


def test_settings_are_the_parsers_own(parser):
    assert {"count", "group.rate", "widget"} <= set(settings(parser))


def test_parameters_include_those_of_the_bases():
    path = f"{__name__}.Gadget"
    assert parameters(path) == ["colour", "act", "size", "net"]
    assert parameters("no.such.Class") == []
