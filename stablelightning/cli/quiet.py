"""Silence for what a terminal user can do nothing about, and for what this package decides itself."""

import logging
import warnings

#: Parts of messages that Lightning says in every run.
_CHATTER = (
    "does not have many workers",  # our data sets lie in memory; workers would only slow them
    "smaller than the logging interval",  # small data sets are what the recipes begin with
    "exists and is not empty",  # a run's folder is checked before it is used
    "It is recommended to use `sync_dist=True`",  # about epoch means under DDP that are synced
    "using `DistributedSampler` with the dataloaders",  # duplicates are removed by row index
)


class _NoChatter(logging.Filter):
    """Drops hints, tips and announcements of hardware that was not asked for."""

    _STARTS = ("💡 Tip", "GPU available", "TPU available", "HPU available", "Seed set to")

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._STARTS)


def quiet() -> None:
    """Drop the chatter of Lightning; warnings about the run itself still come through."""
    for part in _CHATTER:
        warnings.filterwarnings("ignore", message=f".*{part.replace('(', '.')}.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _NoChatter) for f in logger.filters):
            logger.addFilter(_NoChatter())
