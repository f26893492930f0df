"""Silence for what every run would say again, and a progress bar with nothing but what is told."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from stablelightning.errors import StableLightningWarning

#: Parts of the warnings of Lightning and torch about which the reader of a recipe can do nothing.
_CHATTER = (
    "does not have many workers",  # our data sets lie in memory; workers would only slow them
    "smaller than the logging interval",  # small data sets are what the recipes begin with
    "exists and is not empty",  # a run's folder is checked before it is used
    "using `DistributedSampler` with the dataloaders",  # padding is left out by row index
    "callbacks used to create the checkpoint need to be provided",  # predicting saves nothing
    "The dirpath has changed from",  # testing and predicting save nothing
    "is deprecated, use `isinstance.treespec",  # Lightning's own use of torch
)
_SPEAKERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)
_STARTS = (
    "💡 Tip",
    "GPU available",
    "TPU available",
    "HPU available",
    "Seed set to",
    "[rank: ",  # ... Seed set to
    "Restoring states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Initializing distributed: GLOBAL_RANK",
    "-" * 20,  # the frame around the announcement of the process group
    "distributed_backend=",
    "All distributed processes registered",
)


def quiet() -> None:
    """Drop the chatter of Lightning; warnings about the run itself still come through."""
    for part in _CHATTER:
        warnings.filterwarnings("ignore", message=f"[\\s\\S]*{part}")
    if not getattr(warnings.formatwarning, "_is_ours", False):
        warnings.formatwarning = _plain_warning(warnings.formatwarning)
    for name in _SPEAKERS:
        logger = logging.getLogger(name)
        if _no_chatter not in logger.filters:
            logger.addFilter(_no_chatter)


def _plain_warning(usual: Callable[..., str]) -> Callable[..., str]:
    """Our warnings are for readers of recipes: no file and line of this package before them."""

    def plain(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> str:
        if issubclass(category, StableLightningWarning):
            return f"stablelightning: warning: {message}\n"
        return usual(message, category, *rest, **named)

    plain._is_ours = True  # type: ignore[attr-defined]
    return plain


def _no_chatter(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(_STARTS)


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, without the number of the run."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What the model asked to be shown."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
