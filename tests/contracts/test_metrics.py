"""What every public metric is held to."""

import inspect
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.pyplot
import pytest
import torch
import torch.distributed
from torchmetrics import Metric

from stablelightning import metrics
from stablelightning.errors import DataError
from tests.metrics.cases import CASES, FAMILIES
from tests.metrics.tester import CHECKS, fed, same
from tests.processes import WORLD, reports_of


def test_every_public_metric_has_a_case_and_no_other_class_has() -> None:
    assert set(FAMILIES) == set(metrics.__all__)
    assert all(issubclass(getattr(metrics, name), Metric) for name in metrics.__all__)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CASES)
def test_metric(name: str, check: str) -> None:
    CHECKS[check](CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_no_rows_are_said_in_one_line(name: str) -> None:
    metric = CASES[name].make()
    metric.update(*CASES[name].batch(0, 0))
    with pytest.raises(DataError, match="needed, got") as caught:
        metric.compute()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(type(metric).__name__)


@pytest.mark.parametrize("name", CASES)
def test_nan_is_refused_in_one_line(name: str) -> None:
    case = CASES[name]
    metric = case.make()

    def spoilt(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(spoilt(part) for part in value)
        return torch.full_like(value, torch.nan) if value.is_floating_point() else value

    with pytest.raises(DataError, match="NaN") as caught:
        metric.update(*(spoilt(value) for value in case.batch(0, 5)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", metrics.__all__)
def test_what_it_says_of_itself(name: str) -> None:
    kind = getattr(metrics, name)
    assert kind.full_state_update is False
    assert kind.is_differentiable is False
    assert kind.higher_is_better in (True, False, None)
    assert len(inspect.signature(kind).parameters) <= 6
    assert "Example:" in kind.__doc__


@pytest.mark.parametrize("name", FAMILIES)
def test_it_plots(name: str) -> None:
    case = CASES[name]
    metric = fed(case)
    figure, _ = metric.plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    metric.plot([metric.compute(), metric.compute()])
    matplotlib.pyplot.close("all")


def _values(rank: int) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    values = {}
    for name, case in CASES.items():
        metric = case.make()
        # The first process has seen one batch of four: shares differ in size.
        for number, batch in enumerate(case.batches()):
            if (number == 0) == (rank == 0):
                metric.update(*batch)
        alone = case.make()
        if rank == 0:
            alone.update(*case.inputs)
        else:
            alone._update_count = 1  # else torchmetrics warns that compute came first
        values[name] = (metric.compute(), alone.compute())
    torch.distributed.destroy_process_group()
    return values


def test_two_processes_have_the_value_of_one(tmp_path: Path) -> None:
    for report in reports_of(_values, tmp_path):
        for name, case in CASES.items():
            shared, alone = report[name]
            same(shared, fed(case).compute())
            same(alone, fed(case).compute())
