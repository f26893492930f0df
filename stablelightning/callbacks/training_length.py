"""How many steps, or epochs, a training will have."""

import math

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn

from stablelightning.errors import RecipeError

#: What Lightning takes where nothing bounds a training.
_LIGHTNINGS_EPOCHS = 1000
#: A dry run of a few batches is not the training that a schedule is for; it gets a long one.
_DRY_RUN = 100_000


def training_steps(trainer: L.Trainer) -> int:
    """Count the optimizer steps of a training before it begins, over all of its epochs.

    Known are the number of batches (with ``limit_train_batches``, and of this process, where
    several share the data), accumulation (a ``GradientAccumulationScheduler`` too), ``max_epochs``
    and ``max_steps``. A resumed training counts from its very first step. Under ``fast_dev_run``
    it is very long, so that no schedule minds.

    Args:
        trainer: attached to a model and data, as in ``configure_optimizers``; the training
            dataloader is made if it has not been.

    Returns:
        Whole number >= 1.

    Raises:
        RecipeError: training has no end that could be known: ``max_time`` alone, or data without a
            length and no ``max_steps``.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Counting(BoringModel):
        ...     def configure_optimizers(self):
        ...         self.steps = training_steps(self.trainer)
        ...         return super().configure_optimizers()
        >>> model = Counting()
        >>> L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=3,
        ...     limit_train_batches=5, accumulate_grad_batches=2, enable_checkpointing=False,
        ...     enable_model_summary=False,
        ... ).fit(model)
        >>> model.steps
        9
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return _DRY_RUN
    # After training the loop still knows; making loaders is for all processes together.
    if trainer.train_dataloader is None and trainer.state.fn in (None, TrainerFn.FITTING):
        trainer.fit_loop.setup_data()
    batches, epochs = trainer.num_training_batches, training_epochs(trainer)
    bound = trainer.max_steps if trainer.max_steps != -1 else math.inf
    total = bound
    if math.isfinite(epochs) and math.isfinite(batches):
        total = min(bound, _steps(trainer, int(batches), max(int(epochs), 1)))
    if not math.isfinite(total):
        why = (
            "its data has no length" if not math.isfinite(batches) else "nothing but time bounds it"
        )
        raise RecipeError(
            f"a schedule needs to know how many steps training has, and {why}; set max_steps in the"
            " Trainer, or give the schedule its total_steps."
        )
    return max(int(total), 1)


def training_epochs(trainer: L.Trainer) -> float:
    """The epochs of a training, infinite where it is bounded otherwise.

    Args:
        trainer: also one that has not begun: the bounds that Lightning will set are known.
    """
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        return float(trainer.max_epochs)
    otherwise = trainer.max_epochs == -1 or trainer.max_steps != -1
    return math.inf if otherwise else float(_LIGHTNINGS_EPOCHS)


def _steps(trainer: L.Trainer, batches: int, epochs: int) -> int:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            factors = map(callback.get_accumulate_grad_batches, range(epochs))
            return sum(math.ceil(batches / factor) for factor in factors)
    return epochs * math.ceil(batches / trainer.accumulate_grad_batches)
