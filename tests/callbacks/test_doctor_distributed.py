"""On two processes the first one decides, and both train the same cured model."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from stablelightning.callbacks.doctor import ConsultDoctor
from stablelightning.model.cures import recorded_treatments
from tests.callbacks.modules import Plain, data, quiet_trainer
from tests.processes import WORLD, reports_of


class Deep(Plain):
    """Plain and deep, and drawn on each process in its own way, as without a common seed."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        torch.manual_seed(rank)
        layers = [m for _ in range(24) for m in (nn.Linear(8, 8), nn.ReLU())]
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *layers, nn.Linear(8, 3))

    def train_dataloader(self) -> Any:
        return DataLoader(data(24), batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=8)


class FailsOnOne(Deep):
    def train_dataloader(self) -> Any:
        if self.trainer.global_rank == 1:
            raise ValueError("broken on process 1")
        return super().train_dataloader()


def _report(rank: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"strategy": "ddp", "devices": WORLD, "max_epochs": 1}
    model, doctor = Deep(rank), ConsultDoctor(apply=True)
    quiet_trainer(doctor, **settings).fit(model)
    report = {
        "weights": {name: value.detach() for name, value in model.state_dict().items()},
        "treatments": recorded_treatments(model),
        "told": doctor.diagnosis is not None,
    }
    try:
        quiet_trainer(ConsultDoctor(), **settings).fit(FailsOnOne(rank))
    except Exception as error:
        report["failure"] = str(error)
    return report


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return reports_of(_report, tmp_path_factory.mktemp("distributed"))


def test_both_train_the_same_cured_model(reports):
    first, second = reports
    assert "add-skips" in [entry["cure"] for entry in first["treatments"]]
    assert first["treatments"] == second["treatments"]
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_only_the_first_tells(reports):
    assert [report["told"] for report in reports] == [True, False]


def test_a_failure_of_one_is_one_of_all(reports):
    assert all("broken on process 1" in report["failure"] for report in reports)
