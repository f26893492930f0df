"""A module run once on a few rows of its training data, for those who only follow it."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.example import example_batch
from stablelightning.errors import DataError, ModelError
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import preserved_generators
from stablelightning.model.inputs import arguments_of
from stablelightning.model.materialize import quiet_eval
from stablelightning.model.rows import count_rows
from stablelightning.model.step import TrainingStep
from stablelightning.words import reason_of

#: Rows that are run: the order of layers does not depend on them, and batch norm needs two.
_ROWS = 2


def example_run(trainer: L.Trainer, pl_module: L.LightningModule) -> Callable[[], Any]:
    """What runs a module on two rows of its training data, in the Trainer's precision.

    Its forward on the inputs, else its training step, else its forward on its own
    ``example_input_array``: the first that can be called. Loaders, generators, buffers, and what a
    forward keeps on its modules, are left as they were.

    Args:
        trainer: about to fit; its data module is set up.
        pl_module: its module.

    Returns:
        A function without arguments, which returns the output; it can be called any number of
        times, in eval as well as with a graph.

    Raises:
        DataError: there is no training data, it can be read only once, or the module cannot be
            called with it in any way.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def on_fit_start(self, trainer, pl_module):
        ...         self.shape = example_run(trainer, pl_module)().shape
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.shape
        torch.Size([2, 2])
    """
    batch = example_batch(trainer, pl_module)
    batch = trainer.precision_plugin.convert_input(_few_rows(batch))
    failures: list[Exception] = []
    for way in (_forward, _step, _own_example):
        try:
            call = way(pl_module, batch)
            if call is None:
                continue
            run = _left_alone(trainer, pl_module, call)
            with quiet_eval(pl_module):  # without a graph, before anything else is made of it
                run()
            return run
        except Exception as error:  # whatever a forward raises that was written for other batches
            failures.append(error)
    first = failures[0] if failures else ModelError("it has no forward and no training_step")
    reason = reason_of(first)
    raise DataError(
        f"{type(pl_module).__name__} must run on a batch of its training data, and did not "
        f"({reason}); give it a method inputs_and_target(batch)."
    ) from first


def _left_alone(
    trainer: L.Trainer, pl_module: L.LightningModule, call: Callable[[], Any]
) -> Callable[[], Any]:
    def run() -> Any:
        with (
            Footprint(pl_module),
            preserved_generators(),
            torch.inference_mode(False),
            torch.compiler.set_stance("force_eager"),  # hooks do not see into what is compiled
            trainer.precision_plugin.forward_context(),
        ):
            return call()

    return run


def _forward(pl_module: L.LightningModule, batch: Any) -> Callable[[], Any] | None:
    if not is_overridden("forward", pl_module):
        return None
    inputs, _ = inputs_and_target(pl_module, batch)
    return _called(pl_module, inputs)


def _step(pl_module: L.LightningModule, batch: Any) -> Callable[[], Any]:
    return TrainingStep(pl_module, batch).run


def _own_example(pl_module: L.LightningModule, batch: Any) -> Callable[[], Any] | None:
    """Of a GAN, whose forward takes noise and whose step optimizes by itself."""
    given: Any = pl_module.example_input_array
    if given is None:
        return None
    return _called(pl_module, move_data_to_device(given, pl_module.device))


def _called(pl_module: L.LightningModule, inputs: Any) -> Callable[[], Any]:
    args, kwargs = arguments_of(inputs)
    return lambda: pl_module(*args, **kwargs)


def _few_rows(batch: Any) -> Any:
    rows = count_rows(tree_leaves(batch))

    def cut(leaf: Any) -> Any:
        fits = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == rows
        return leaf[:_ROWS] if fits else leaf

    return tree_map(cut, batch)
