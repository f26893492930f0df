"""What a run of a pretraining module has to show: how well it does, and what its file is for."""

from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from stablelightning.callbacks.backbone import SaveBackbone
from stablelightning.callbacks.example import example_batch
from stablelightning.model.generators import preserved_generators
from stablelightning.pretraining.base import Pretraining
from stablelightning.report.section import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Where a number of the training is looked for, in the order of the columns.
_STAGES = ("train", "val", "test")


def pretraining_of_run(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """How well the objective is met, a picture of it, and how to go on with the backbone.

    Args:
        trainer: after training, and testing if there is a test.
        model: what was trained.

    Returns:
        ``None`` for a module that does not pretrain.
    """
    if not isinstance(model, Pretraining):
        return None
    file = next((c.path for c in _savers(trainer) if c.path is not None), None)
    lead = f"the network gives features that were learned without labels ({model.objective})"
    notes = []
    if file is not None:
        lead += f"; they are in {file.name}"
        notes.append(
            f"to fine-tune with few labels, give the path to another run: "
            f"--stable.pretrain=PretrainFirst --stable.pretrain.weights={file}"
        )
    metrics = _metrics(trainer, model)
    return Section(
        "pretraining",
        "Pretraining",
        lead,
        ["", "train (last epoch)", "val (last epoch)", "test"],
        _rows(metrics),
        _picture(trainer, model),
        notes,
        metrics,
    )


def _metrics(trainer: L.Trainer, model: Pretraining) -> dict[str, float]:
    """What was logged in training and test, ``<stage>/<name>``."""
    logged = model.fitted | {k: float(v) for k, v in trainer.callback_metrics.items()}
    # Of the whole epoch, not of its last batch.
    epoch = {k.removesuffix("_epoch"): v for k, v in logged.items() if k.endswith("_epoch")}
    return {key: value for key, value in (logged | epoch).items() if _is_plain(key)}


def _is_plain(key: str) -> bool:
    return key.partition("/")[0] in _STAGES and not key.endswith(("_epoch", "_step"))


def _rows(metrics: dict[str, float]) -> list[list[Any]]:
    names = sorted({key.partition("/")[2] for key in metrics}, key=lambda n: (n != "loss", n))
    return [
        [name.replace("_", " "), *(metrics.get(f"{stage}/{name}") for stage in _STAGES)]
        for name in names
    ]


def _savers(trainer: L.Trainer) -> list[SaveBackbone]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, SaveBackbone)]


def _picture(trainer: L.Trainer, model: Pretraining) -> "Figure | None":
    training = model.training
    try:
        model.eval()
        with torch.no_grad(), preserved_generators(seed=0):
            batch = _batch(trainer, model)
            return None if batch is None else model.picture(batch)
    finally:
        model.train(training)


def _batch(trainer: L.Trainer, model: Pretraining) -> Any:
    """A batch that was not trained on, if there is one."""
    loaders = trainer.test_dataloaders or trainer.val_dataloaders
    loader = loaders[0] if isinstance(loaders, list | tuple) and loaders else loaders
    if loader is None or isinstance(loader, list | tuple):
        return example_batch(trainer, model)
    batch = next(iter(loader), None)
    return None if batch is None else model._apply_batch_transfer_handler(batch, model.device)
