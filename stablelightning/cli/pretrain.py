"""What a run tells of the pretraining that it began with."""

import lightning as L

from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.cli.sections import callbacks_of
from stablelightning.report.pretrain_first import pretrain_section
from stablelightning.report.section import Section


def pretrain_of_run(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """The losses of the first part of the run, and what became of a file.

    Args:
        trainer: after training.
        model: its module.

    Returns:
        ``None`` where the run began with nothing of the kind.
    """
    for callback in callbacks_of(trainer, PretrainFirst):
        section = pretrain_section(callback.record, callback.summary(), callback.numbers())
        if section is not None and callback.report is not None:
            section.notes += str(callback.report).splitlines()[1:]
        return section
    return None
