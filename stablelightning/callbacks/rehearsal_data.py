"""The training data once more, beside the loaders that training reads."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.errors import DataError


@contextmanager
def training_batches(trainer: L.Trainer) -> Iterator[Iterator[Any]]:
    """Read batches as training will, from the first one on, round and round.

    The loaders of the fit loop, distributed as Lightning distributes them, are copied but for the
    data in them; samplers are copied whole, so that what they count and draw by themselves stays
    untouched. What is no ordinary loader is copied with all that it holds. Global generators move,
    and are the caller's to restore.

    Args:
        trainer: in its fit loop, the loaders set up.

    Yields:
        Batches as the loaders give them, on no device yet. It ends only if an epoch is empty.

    Raises:
        DataError: the data can be read only once.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def on_train_start(self, trainer, pl_module):
        ...         with training_batches(trainer) as batches:
        ...             self.shapes = [tuple(next(batches).shape) for _ in range(3)]
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ...     limit_train_batches=2, limit_val_batches=0,
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.shapes
        [(1, 32), (1, 32), (1, 32)]
    """
    mine = trainer.fit_loop._combined_loader
    assert mine is not None
    combined = CombinedLoader(tree_map(_twin, mine.iterables), mine._mode)
    combined.limits = mine.limits
    batches = _around(combined)
    try:
        yield batches
    finally:
        batches.close()
        combined.reset()  # ends worker processes


def _around(combined: CombinedLoader) -> Any:
    while True:
        number = 0
        for batch, _, _ in combined:
            number += 1
            yield batch
        if not number:
            return


def _twin(loader: Any) -> Any:
    """A loader of the same data that shares no place, no sampler and no worker."""
    if isinstance(loader, list | tuple | range):  # cannot tell that they are read
        return loader
    if isinstance(loader, Iterator):
        raise _only_once(type(loader).__name__)
    if not isinstance(loader, DataLoader):
        return _copied(loader, {})
    # In the copy the iterator of persistent workers is missing, and the dataset is the same one,
    # but for a stream that is read in this process.
    shared: list[Any] = [loader.dataset]
    if isinstance(loader.dataset, IterableDataset) and not loader.num_workers:
        shared = []
    memo = {id(thing): thing for thing in (*shared, loader.collate_fn, loader.worker_init_fn)}
    memo[id(loader._iterator)] = None
    twin = _copied(loader, memo)
    vars(twin)["persistent_workers"] = False  # past the loader's guard against changes in use
    return twin


def _copied(loader: Any, memo: dict[int, Any]) -> Any:
    memo.pop(id(None), None)
    try:
        return copy.deepcopy(loader, memo)
    except Exception as error:  # generators, sockets, locks: each kind raises its own
        raise _only_once(f"{type(loader).__name__}, which cannot be copied") from error


def _only_once(what: str) -> DataError:
    return DataError(
        f"the training data can be read only once (it is a {what}), and trial runs need it before "
        "training does; give a DataLoader, or what begins anew, or set the learning rate by hand."
    )
