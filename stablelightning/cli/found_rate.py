"""What a run tells of the learning rate that was found for it."""

import lightning as L

from stablelightning.callbacks.rate_choice import ChoosesLearningRate
from stablelightning.cli.sections import callbacks_of
from stablelightning.report.learning_rate import learning_rate_figure
from stablelightning.report.section import Section


def found_rate(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """The rates that were tried before training, and the one that was taken.

    Args:
        trainer: after training.
        model: its module.

    Returns:
        ``None`` where nothing was tried.
    """
    for callback in callbacks_of(trainer, ChoosesLearningRate):
        history = callback.history
        if not history:
            continue
        found = callback.suggested
        lead = "no learning rate was found" if found is None else f"found {found:.2g}"
        numbers = {"suggested": found, "diverged_at": callback.diverged_at}
        return Section(
            "learning_rate",
            "Learning rate",
            f"{lead} (was {history['own']:.2g}): {history['reason']}",
            ["rate", "loss at the end", "steps"],
            [[run["rate"], run["score"], len(run["losses"])] for run in history["runs"]],
            learning_rate_figure(history) if history["runs"] or history.get("rates") else None,
            numbers={f"learning_rate/{k}": v for k, v in numbers.items() if v is not None},
        )
    return None
