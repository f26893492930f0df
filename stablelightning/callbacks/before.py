"""What callbacks share that change a model before training: when, and how a checkpoint keeps it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.steps import replace_method
from stablelightning.model.cures import CHECKPOINT_KEY, recorded_treatments, repeat_treatments
from stablelightning.model.generators import preserved_generators, undisturbed_generators
from stablelightning.model.members import Members

_Action = Callable[[L.Trainer, L.LightningModule], None]

#: Seeds of members are taken below this.
_SEEDS = 2**62


def for_each_member(action: _Action) -> _Action:
    """Let what acts on a model act on every member of an ensemble, one after the other.

    A member is an ordinary model meanwhile. What is drawn differs from member to member; the
    generators are left as after the first one.

    Args:
        action: on a module that is one model it is called as it is.

    Example:
        >>> seen = []
        >>> for_each_member(lambda trainer, module: seen.append(module))(None, "model")
        >>> seen
        ['model']
    """

    def act(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, Members):
            return action(trainer, pl_module)
        with undisturbed_generators():
            seeds = torch.randint(_SEEDS, (pl_module.members,)).tolist()
        for number, seed in enumerate(seeds):
            seeded = preserved_generators(seed) if number else nullcontext()
            with pl_module.as_member(number), seeded:
                action(trainer, pl_module)

    return act


@contextmanager
def first_member(pl_module: L.LightningModule) -> Iterator[None]:
    """Inside, an ensemble is its first member: for what looks at the structure, which all share.

    Args:
        pl_module: one that is a single model stays what it is.

    Example:
        >>> with first_member(L.LightningModule()):
        ...     pass
    """
    with pl_module.as_member(0) if isinstance(pl_module, Members) else nullcontext():
        yield


class BeforeTraining(StableCallback):
    """Base of the callbacks that act on a model in ``setup``, before it is wrapped or optimized.

    Methods of the module that are replaced meanwhile are given back when the fit starts, ends or
    fails.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Count(BeforeTraining):
        ...     def setup(self, trainer, pl_module, stage):
        ...         self.when_the_model_is_there(trainer, pl_module, self.count)
        ...
        ...     def count(self, trainer, pl_module):
        ...         self.weights = sum(p.numel() for p in pl_module.parameters())
        >>> count = Count()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[count],
        ... )
        >>> trainer.fit(BoringModel())
        >>> count.weights
        66
    """

    def __init__(self) -> None:
        self._restore: list[Callable[[], None]] = []

    def when_the_model_is_there(
        self, trainer: L.Trainer, pl_module: L.LightningModule, action: _Action
    ) -> None:
        """Act now, or after the module's own hook where it may make its layers.

        Some modules make layers, or their data, in ``setup`` or ``configure_model``, which come
        after the callbacks' ``setup``.
        """
        for hook in ("configure_model", "setup"):
            if is_overridden(hook, pl_module):
                usual = getattr(pl_module, hook)

                @wraps(usual)
                def then(*args: Any, _usual: Any = usual, **kwargs: Any) -> None:
                    _usual(*args, **kwargs)
                    action(trainer, pl_module)

                self._restore.append(replace_method(pl_module, hook, then))
                return
        action(trainer, pl_module)

    def leave(self) -> None:
        """Leave the module's methods as they were."""
        while self._restore:
            self._restore.pop()()


class ChangesStructure(BeforeTraining):
    """Base of those that change which modules there are; checkpoints keep that beside weights."""

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what was done to the structure beside the weights."""
        treatments = recorded_treatments(pl_module)
        if treatments:
            checkpoint[CHECKPOINT_KEY] = treatments

    def repeat_before_loading(self, pl_module: L.LightningModule) -> None:
        """Repeat the changes of a checkpoint before its weights are loaded.

        Lightning asks the module first when it has read a checkpoint, and then loads weights.
        """
        usual = pl_module.on_load_checkpoint

        def repeat_first(checkpoint: dict[str, Any]) -> None:
            repeat_treatments(pl_module, checkpoint.get(CHECKPOINT_KEY, []))
            self.repeated(pl_module)
            usual(checkpoint)

        self._restore.append(replace_method(pl_module, "on_load_checkpoint", repeat_first))

    def repeated(self, pl_module: L.LightningModule) -> None:
        """Called when the changes of a checkpoint have been made again."""
