"""Two data sets, one after the other: as a test run sees them."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.errors import DataError
from stablelightning.functional.out_of_distribution import ood_auroc
from stablelightning.metrics import OODAUROC, FalsePositiveRate


def test_a_batch_of_one_kind_has_no_value_of_its_own_and_is_remembered() -> None:
    metric = OODAUROC()
    assert metric(torch.tensor([0.1, 0.4]), False).isnan()
    assert metric(torch.tensor([0.3, 0.9]), True).isnan()
    assert metric.compute().item() == pytest.approx(0.75)


def test_one_kind_alone_is_said_when_it_is_computed() -> None:
    metric = FalsePositiveRate()
    metric.update(torch.tensor([0.1, 0.4]), False)
    with pytest.raises(DataError, match=r"FalsePositiveRate: .* got 2 in and 0 out"):
        metric.compute()


def test_another_number_of_kinds_than_rows_is_refused() -> None:
    with pytest.raises(DataError, match="one out, got 2 for 3 rows"):
        OODAUROC().update(torch.ones(3), torch.tensor([0, 1]))


class Detector(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.auroc = OODAUROC()

    def test_step(self, batch: list[torch.Tensor], batch_idx: int, dataloader_idx: int) -> None:
        self.auroc(batch[0].squeeze(1), dataloader_idx == 1)

    def on_test_epoch_end(self) -> None:
        self.log("auroc", self.auroc)


def test_in_a_test_run_of_two_loaders() -> None:
    known, strange = torch.randn(40, 1), torch.randn(30, 1) + 1
    loaders = [DataLoader(TensorDataset(rows), batch_size=8) for rows in (known, strange)]
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    result = trainer.test(Detector(), loaders, verbose=False)[0]["auroc"]
    score = torch.cat([known, strange]).squeeze(1)
    assert result == pytest.approx(ood_auroc(score, torch.arange(70) >= 40).item(), abs=1e-3)
