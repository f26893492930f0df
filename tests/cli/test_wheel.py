"""The wheel carries the recipes, and runs them far from the clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.commands import QUICK, stablelightning

ROOT = Path(__file__).parents[2]

pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with nothing in it but what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_recipe_and_the_command(installed):
    shipped = {path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml")}
    inside = installed / "stablelightning"
    assert {path.relative_to(inside) for path in inside.rglob("*.yaml")} == shipped
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "stablelightning = stablelightning.cli.main:main" in entry_points.read_text()


def test_a_recipe_runs_from_the_wheel_in_any_folder(installed, tmp_path):
    code = "import stablelightning; print(stablelightning.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed))  # not the clone
    done = stablelightning(
        "run", "diabetes", *QUICK, "--output=out", cwd=tmp_path, PYTHONPATH=str(installed)
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").exists()
