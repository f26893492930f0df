"""The docs name what there is: every public name, recipe, overlay and slot."""

import importlib
import re
from pathlib import Path

import pytest

import stablelightning as sl
from stablelightning.cli.main import main
from stablelightning.cli.recipes import ADD, START, shipped
from stablelightning.cli.slots import SLOTS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
HOMES = re.findall(r"\.\. automodule:: (\S+)", PAGES["api"])


def test_every_name_of_the_face_has_its_place():
    for name in sl.__all__:
        home = f"{getattr(sl, name).__module__}.{name}"
        assert f"`sl.{name}` | " in PAGES["api"], name
        assert f"`{home}`" in PAGES["api"], home
        assert getattr(sl, name).__module__ in HOMES, home


@pytest.mark.parametrize("package", ["callbacks", "data", "model", "nn"])
def test_every_name_of_a_package_has_its_place(package):
    module = importlib.import_module(f"stablelightning.{package}")
    assert {getattr(module, name).__module__ for name in module.__all__} <= set(HOMES)


def test_recipes_overlays_and_slots_are_listed():
    for name in (*shipped(START), *shipped(ADD)):
        assert f"| `{name}` |" in PAGES["recipes"], name
    for slot in SLOTS:
        assert f"| `{slot.key}` |" in PAGES["recipes"], slot.key


@pytest.mark.parametrize("page", [p for p in PAGES if p not in ("api", "changelog")])
def test_a_page_has_a_picture_that_the_build_makes(page):
    pictures = re.findall(
        r"^```\{figure\} _generated/(\w+)\.png\n:alt: \S", PAGES[page], re.MULTILINE
    )
    assert pictures
    assert all((DOCS / "figures" / f"{name}.py").is_file() for name in pictures)


ERRORS = re.findall(
    r"^\$ stablelightning (.+)\n(stablelightning: error: .+)$", PAGES["recipes"], re.MULTILINE
)


@pytest.mark.parametrize(("arguments", "told"), ERRORS, ids=[a for a, _ in ERRORS])
def test_an_error_is_told_as_the_page_says(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert not list(tmp_path.iterdir())


def test_no_picture_is_drawn_for_nothing():
    drawn = {path.stem for path in (DOCS / "figures").glob("[!_]*.py")}
    shown = set(re.findall(r"_generated/(\w+)\.png", "\n".join(PAGES.values())))
    assert drawn == shown
