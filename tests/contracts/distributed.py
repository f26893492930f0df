"""Two gloo processes, started once, in which every callback runs; tests read what they saw."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.modules import data, loader, quiet_trainer
from tests.contracts.models import OnlyOneRankReads, Seeded, weights
from tests.contracts.public import make, public_callbacks
from tests.processes import WORLD, reports_of

#: No multiple of the processes nor of the batches: the sampler pads, the last batch is short.
ROWS = 21


class Distributed(Seeded):
    """Seeded, on data that does not divide by the processes."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(24), batch_size=4)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(ROWS, batch_size=4)

    def test_dataloader(self) -> DataLoader[Any]:
        """Rows of its own: nothing may be judged by those that it was fitted on."""
        x, y = data(ROWS).tensors
        return DataLoader(TensorDataset(-x, y), batch_size=4)

    predict_dataloader = test_dataloader


def run_on_two_processes(folder: Path) -> list[dict[str, Any]]:
    """What each process reports, by rank."""
    return reports_of(_report, folder)


def _report(rank: int) -> dict[str, Any]:
    report: dict[str, Any] = {kind.__name__: _all_loops(kind) for kind in public_callbacks()}
    report["none"] = _all_loops(None)
    report["one rank fails"] = _one_rank_fails()
    return report


def _trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    return quiet_trainer(*callbacks, strategy="ddp", devices=WORLD, **settings)


def _all_loops(kind: type[L.Callback] | None) -> dict[str, Any]:
    torch.manual_seed(0)
    callbacks = [] if kind is None else [make(kind)]
    trainer = _trainer(*callbacks, max_epochs=1)
    model = Distributed()
    trainer.fit(model)
    seen: dict[str, Any] = {"weights": weights(model), "metrics": []}
    seen["state"] = callbacks[0].state_dict() if callbacks else {}
    for _ in range(2):  # a repeat gives the same numbers
        trainer.test(model, verbose=False)
        seen["metrics"].append({k: v.item() for k, v in trainer.callback_metrics.items()})
    seen["rows"] = getattr(callbacks[0], "rows", None) if callbacks else None
    seen["predictions"] = trainer.predict(model)
    return seen


def _one_rank_fails() -> list[str]:
    """Process 1 steps aside, and process 0 must not wait for it."""
    import stablelightning as sl

    callbacks = sl.recommended_callbacks()
    trainer = _trainer(*callbacks)
    trainer.test(OnlyOneRankReads(), verbose=False)
    return [key for key in trainer.callback_metrics if key.startswith("uncertainty/")]
