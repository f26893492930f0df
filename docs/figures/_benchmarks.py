"""What the benchmarks measured, and how they draw it."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = Path(__file__).parent


def numbers(name: str) -> Any:
    """Of the run that a page states: the JSON file beside this one."""
    return json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))


def part(name: str) -> ModuleType:
    """A module of ``tests.benchmarks``, which is no package that anybody installs."""
    sys.path.insert(0, str(_HERE.parents[1]))
    try:
        return importlib.import_module(f"tests.benchmarks.{name}")
    finally:
        sys.path.pop(0)
