"""Optional packages: a missing or a broken one is named, with the extra that brings it."""

import sys
import tomllib
from pathlib import Path

import pytest

from stablelightning.errors import MissingPackageError
from stablelightning.optional import require


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package whose import runs the given code."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def make(name: str, code: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        names.append(name)
        return name

    yield make
    for name in names:
        sys.modules.pop(name, None)


def test_a_package_that_is_there_is_imported():
    assert require("json.decoder", extra="recipes").JSONDecodeError


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.inside"])
def test_a_missing_package_is_named_with_its_extra(name):
    with pytest.raises(MissingPackageError) as caught:
        require(name, extra="vision")
    assert str(caught.value) == (
        "no_such_package must be installed for this, and it is not; "
        "pip install 'stablelightning[vision]' brings it."
    )
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        # What torchvision says where its build does not match torch.
        ("raise RuntimeError('operator torchvision::nms does not exist\\nmore')", "::nms does not"),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("raise AttributeError(\"module 'numpy' has no attribute 'bool'\")", "no attribute"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("from json import no_such_name", "no_such_name"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_broken_package_is_told_from_a_missing_one(package, code, reason):
    name = package("broken_package", code)
    with pytest.raises(MissingPackageError, match="is installed but its import fails") as caught:
        require(name, extra="vision")
    assert reason in str(caught.value)
    assert "pip install --force-reinstall 'stablelightning[vision]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_torchvision_is_told_by_the_data_that_needs_it(package, tmp_path, monkeypatch):
    from stablelightning.data import ImageFolderData

    for loaded in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, loaded)
    package("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
    with pytest.raises(MissingPackageError, match=r"torchvision::nms.*\[vision\]"):
        ImageFolderData(tmp_path / "images").setup()


def test_every_extra_that_is_named_in_the_code_exists():
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {
        part.partition('"')[0]
        for path in (root / "stablelightning").rglob("*.py")
        for part in path.read_text(encoding="utf-8").split('extra="')[1:]
    }
    assert named == {"onnx", "recipes", "vision"}
    assert named <= set(extras)
