"""CIFAR-10: scores, unknown inputs and shift."""

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.record import Run
from tests.benchmarks.uncertainty import quality

TITLE = "CIFAR-10: scores, unknown inputs and shift"
NEEDS_ROOT = True


def measure(run: Run) -> dict[str, Any]:
    return quality.measure("cifar", run)


def table(measured: Mapping[str, Any]) -> str:
    return quality.table(measured)
