"""Run the benchmark; see the package for its arguments."""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import stablelightning as sl
from tests.benchmarks.control import SECTIONS


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, package {sl.__version__}",
        "seeds": given.seeds,
    }
    for name in given.only or SECTIONS:
        section = import_module(f"tests.benchmarks.control.{name}")
        began = time.perf_counter()
        measured = section.measure(given.seeds)
        minutes = (time.perf_counter() - began) / 60
        result[name] = measured | {"minutes": minutes}
        print(f"\n{section.TITLE} ({minutes:.1f} min)\n\n{section.table(measured)}", flush=True)
        if given.json:  # after every section: what was measured is not lost
            Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.control")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="where the numbers go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
