"""EstimateUncertainty(masks=...): what reaches the samples of Trainer.test and Trainer.predict."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import EstimateUncertainty
from stablelightning.errors import RecipeError
from stablelightning.module import StableModule


def module() -> StableModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    return StableModule(net, task="classification")


def rows(batch_size: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 8, generator=generator), torch.arange(12) % 3
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def predicted(tmp_path: Path, masks: Any, batch_size: int) -> Tensor:
    callback = EstimateUncertainty(samples=10, masks=masks)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback],
    )  # fmt: skip
    predictions = trainer.predict(module(), rows(batch_size))
    assert predictions is not None
    return torch.cat([prediction.epistemic for prediction in predictions])


@pytest.mark.parametrize("masks", ["consistent", "balanced_consistent"])
def test_consistent_masks_make_batches_immaterial(tmp_path: Path, masks: Any) -> None:
    torch.testing.assert_close(predicted(tmp_path, masks, 12), predicted(tmp_path, masks, 5))


@pytest.mark.parametrize("masks", ["independent", "balanced"])
def test_other_masks_are_drawn_for_each_batch(tmp_path: Path, masks: Any) -> None:
    whole, parts = predicted(tmp_path, masks, 12), predicted(tmp_path, masks, 5)
    assert (whole - parts).abs().max() > 1e-4
    assert torch.equal(whole, predicted(tmp_path, masks, 12))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"masks must be one of .*, got 'fair'"):
        EstimateUncertainty(masks="fair")  # type: ignore[arg-type]
