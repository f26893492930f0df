"""One example batch of the training data, read beside the loader and not through it."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.callbacks.first_batches import training_source
from stablelightning.callbacks.rows import collated, copied
from stablelightning.errors import DataError
from stablelightning.model.generators import undisturbed_generators

#: Rows of an example: enough to measure a layer's size to a few percent, and little memory.
_MOST_ROWS = 64
_FEWEST_ROWS = 2


def example_batch(trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
    """Make one batch as ``training_step`` gets it, and leave order, generators and workers alone.

    Rows are taken from the dataset, spread evenly over it, and collated as the loader does; no
    sampler is asked and no worker started. What is no ordinary loader (an iterable dataset, a
    loader that counts, one whose sampler alone knows the keys) is read from a copy.

    Args:
        trainer: about to fit; its data module is set up.
        pl_module: its module, whose batch transfer hooks are run.

    Returns:
        A batch on the device of the module's parameters.

    Raises:
        DataError: there is no training data, or it can be read only once.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         self.shape = tuple(example_batch(trainer, pl_module).shape)
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.shape
        (2, 32)
    """
    source, device = training_source(trainer, pl_module)
    with undisturbed_generators():
        loader = source.dataloader()
        sequential = isinstance(loader, CombinedLoader) and loader._mode == "sequential"
        several = loader.iterables if isinstance(loader, CombinedLoader) else loader
        leaves, spec = tree_flatten(several)
        examples = [_example(leaf) for leaf in (leaves[:1] if sequential else leaves)]
        batch = examples[0] if sequential else tree_unflatten(examples, spec)
        return pl_module._apply_batch_transfer_handler(batch, device=device)


def _example(loader: Any) -> Any:
    if type(loader).__iter__ is DataLoader.__iter__ and not _streams(loader):
        try:
            return _rows_of(loader)
        except (TypeError, KeyError, IndexError):  # a dataset that only its sampler can index
            pass
    return _first_of_a_copy(loader)


def _streams(loader: Any) -> bool:
    return isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__")


def _rows_of(loader: Any) -> Any:
    dataset = loader.dataset
    if not len(dataset):
        raise DataError("the training data must have rows to be looked at, and it is empty.")
    if loader.batch_sampler is None:  # the dataset gives whole batches
        return loader.collate_fn(dataset[0])
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or _MOST_ROWS
    rows = min(len(dataset), max(int(size), _FEWEST_ROWS), _MOST_ROWS)
    places = torch.linspace(0, len(dataset) - 1, rows).round().long().tolist()
    return collated(loader, places)


def _first_of_a_copy(loader: Any) -> Any:
    remedy = "its first batch; call sl.initialize(model, example) before fit"
    other = copied(loader, remedy=remedy)
    for batch in other:
        return batch
    raise DataError("the training data must have a batch to be looked at, and it is empty.")
