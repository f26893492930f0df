"""What a run tells of its fine-tuning."""

import lightning as L

from stablelightning.callbacks.choose_transfer import ChooseTransfer
from stablelightning.callbacks.freeze_base import Freezing
from stablelightning.cli.sections import callbacks_of
from stablelightning.report.section import Section
from stablelightning.report.transfer import transfer_section


def transfer_of_run(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """The section of a run in which groups were frozen and opened.

    Args:
        trainer: after training.
        model: its module.
    """
    for callback in callbacks_of(trainer, Freezing):
        history, groups = callback.history, len(callback.found)
        if not isinstance(callback, ChooseTransfer):
            return transfer_section(history, groups=groups)
        return transfer_section(
            history,
            groups=groups,
            choice=callback.choice,
            profile=callback.profile,
            reason=callback.reason,
            raced=callback.raced,
        )
    return None
