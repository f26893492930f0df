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
        own = f"{history['own']:.2g}"
        if found is None:
            lead = f"no learning rate was found, kept {own}"
        elif history["applied"]:
            lead = f"found {found:.2g} (was {own})"
        else:
            lead = f"suggested {found:.2g}, kept {own}"
        numbers = {"suggested": found, "diverged_at": callback.diverged_at}
        return Section(
            "learning_rate",
            "Learning rate",
            f"{lead}: {history['reason']}",
            ["rate", "loss at the end", "steps"],
            [[run["rate"], run["score"], len(run["losses"])] for run in history["runs"]],
            learning_rate_figure(history) if history["runs"] or history.get("rates") else None,
            numbers={f"learning_rate/{k}": v for k, v in numbers.items() if v is not None},
        )
    return None
