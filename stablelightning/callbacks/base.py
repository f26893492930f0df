"""What every callback of this package has in common."""

from typing import Any, ClassVar

import lightning as L

from stablelightning.callbacks.order import put_in_order
from stablelightning.errors import ModelError

#: The stand-alone package of the same code. Its classes are other classes.
_OTHER_PACKAGE = "pytorch_lightning"


class StableCallback(L.Callback):
    """Base of the callbacks here: refuses a Trainer or module from the other Lightning package.

    Constructor arguments are kept as attributes of the same name, so that a callback reads as it
    was written in the recipe, and validated in the constructor, so that a bad recipe dies before
    the first step.

    Where the order in which callbacks act decides, a class has a ``rank``: before the first hook of
    a loop those with a rank are sorted by it, among the places that they hold in the Trainer's
    list. Guarding comes before measuring, and measuring before clipping.

    Example:
        >>> class Count(StableCallback):
        ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ...         self.batches = batch_idx + 1
        >>> Count().state_key
        'Count'
    """

    #: The smaller comes first; ``None`` stays where the Trainer's list has it.
    rank: ClassVar[int | None] = None

    _stage: str | None = None

    @property
    def goes_on(self) -> bool:
        """Whether a checkpoint's state is wanted: to train on from it, and not to test it.

        Lightning gives it back before every loop, and testing the best checkpoint must not make
        those who tell of training forget what came after it.
        """
        return self._stage in (None, "fit")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check where the Trainer and the module come from, and put callbacks in order."""
        refuse_other_lightning(trainer, pl_module, name=type(self).__name__)
        put_in_order(trainer)
        self._stage = stage

    def leave(self) -> None:
        """Take away what was put into the model, the optimizers and the Trainer; results stay.

        Called when a loop is over and after an exception, so perhaps twice.
        """

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave everything as it was."""
        self.leave()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave everything as it was."""
        self.leave()


def refuse_other_lightning(*objects: Any, name: str) -> None:
    """Say it in words when an object comes from ``pytorch_lightning`` instead of ``lightning``.

    Both packages get installed side by side. Lightning itself refuses a module of one in a Trainer
    of the other, but a ``pytorch_lightning`` Trainer takes any callback and calls its hooks, and
    then every ``isinstance`` against ``lightning.pytorch`` is false.

    Args:
        objects: a Trainer, a LightningModule, a data module.
        name: who asks, for the message.

    Raises:
        ModelError: one of them is from ``pytorch_lightning``.

    Example:
        >>> refuse_other_lightning(L.LightningModule(), name="EstimateUncertainty")
    """
    for thing in objects:
        for base in type(thing).__mro__:
            if base.__module__.partition(".")[0] == _OTHER_PACKAGE:
                raise ModelError(
                    f"{name} needs lightning.pytorch, and {type(thing).__name__} is a "
                    f"{base.__name__} of {_OTHER_PACKAGE}; import lightning as L everywhere "
                    f"instead of {_OTHER_PACKAGE} (same code, other classes)."
                )
