"""What the package as a whole promises: a small face, a light import, examples, short files."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import stablelightning as sl
from stablelightning import errors

PACKAGE = Path(sl.__file__).parent
FACE = [
    "ClipGradientNorm",
    "EstimateUncertainty",
    "GuardTraining",
    "MonitorSignals",
    "Prediction",
    "StableMixin",
    "UnfreezeGradually",
    "add_dropout",
    "diagnose",
    "fold_batch_norm",
    "initialize",
    "mc_dropout",
    "recommend_activation",
    "recommended_callbacks",
    "replace_head",
    "sample_predictions",
    "swap_activations",
]


def modules() -> list[str]:
    found = pkgutil.walk_packages([str(PACKAGE)], "stablelightning.")
    return [m.name for m in found if not m.name.endswith("__main__")]


def public_names() -> list[tuple[str, str]]:
    """Every (module, name) that some ``__all__`` of the package offers."""
    pairs = []
    for module in ["stablelightning", *modules()]:
        source = Path(importlib.util.find_spec(module).origin)
        if "\n__all__ = " in source.read_text(encoding="utf-8"):
            pairs += [(module, name) for name in importlib.import_module(module).__all__]
    return pairs


def test_the_face_is_small():
    assert sorted(sl.__all__) == FACE
    assert set(FACE) <= set(dir(sl))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        sl.no_such_name


@pytest.mark.parametrize(("module", "name"), public_names(), ids=".".join)
def test_public_names_have_an_example(module, name):
    value = getattr(importlib.import_module(module), name)
    if not inspect.isclass(value) and not inspect.isroutine(value):
        return  # constants and type aliases
    text = inspect.getdoc(value) or ""
    assert ">>> " in text, f"{module}.{name} has no example that runs"


@pytest.mark.parametrize("forbidden", ["torch", "lightning", "wandb", "numpy"])
def test_importing_the_package_imports_nothing_heavy(forbidden):
    code = f"import sys, stablelightning; sys.exit({forbidden!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_can_be_imported_first():
    """No import works only because another one came before it (in one process per package)."""
    packages = sorted({name.split(".")[1] for name in modules()})
    code = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        try: importlib.import_module('stablelightning.' + name)\n"
        "        except BaseException as error: print(name, repr(error)); os._exit(1)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(pid, 0)[1]: sys.exit(1)\n"
    )
    warm = "import torch, lightning\n"  # slow, and not ours
    ran = subprocess.run(
        [sys.executable, "-c", warm + code, *packages], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]


def test_files_are_short():
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_no_drawer_for_everything():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "helper", "misc", "common"}


@pytest.mark.parametrize(
    "kind",
    [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, Exception)],
    ids=lambda k: k.__name__,
)
def test_errors_form_one_tree_over_the_builtins(kind):
    if issubclass(kind, Warning):
        assert issubclass(kind, UserWarning)
        return
    assert issubclass(kind, errors.StableLightningError)
    if kind is not errors.StableLightningError:
        builtins = [b for b in kind.__mro__ if b.__module__ == "builtins"]
        assert set(builtins) - {Exception, BaseException, object}
