"""What a run tells of the gap between training and validation loss."""

import lightning as L

from stablelightning.callbacks.gap import MeasureGap
from stablelightning.cli.sections import callbacks_of
from stablelightning.report.gap import gap_section
from stablelightning.report.section import Section


def gap_of_run(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """The section of a run in which :class:`MeasureGap` has measured.

    Args:
        trainer: after training.
        model: its module.
    """
    for callback in callbacks_of(trainer, MeasureGap):
        return gap_section(callback.gaps, callback.advice)
    return None
