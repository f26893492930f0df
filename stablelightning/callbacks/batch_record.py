"""Which rows of the dataset the present training batch is made of."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

#: Batches whose rows are known beyond those that workers have been asked for ahead.
_SPARE = 16


class BatchRecord:
    """Notes what a training loader's batch sampler yields, and tells the rows of a batch by it.

    The order of the data, generators and workers are as without it. Rows are known of a plain
    ``DataLoader`` with a batch sampler, whatever its samplers (also those that Lightning puts in
    for several processes); not of iterable datasets, of several loaders at once, nor of loader
    classes of other packages. What is not known for sure is not told.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Rows(L.Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         self.record, self.seen = BatchRecord(), []
        ...         self.record.attach(trainer)
        ...
        ...     def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        ...         self.seen.append(self.record.rows(trainer, batch))
        ...
        ...     def teardown(self, trainer, pl_module, stage):
        ...         self.record.detach()
        >>> rows = Rows()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=2,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[rows],
        ... )
        >>> data = torch.utils.data.DataLoader(torch.randn(6, 32), batch_size=3)
        >>> trainer.fit(BoringModel(), data)
        >>> rows.seen
        [[0, 1, 2], [3, 4, 5]]
    """

    def __init__(self) -> None:
        self._restore: list[Callable[[], None]] = []

    def attach(self, trainer: L.Trainer) -> None:
        """Begin to note; for ``setup`` of a callback, before there are loaders.

        To be ended by :meth:`detach` in ``teardown`` and ``on_exception``.
        """
        self.detach()
        strategy = trainer.strategy
        usual = strategy.process_dataloader

        def process_dataloader(loader: Any) -> Any:
            # The last place where Lightning handles a loader before it is iterated.
            loader = usual(loader)
            if trainer.training and _is_plain(loader):
                self._note(loader)
            return loader

        vars(strategy)["process_dataloader"] = process_dataloader

        def restore() -> None:
            if vars(strategy).get("process_dataloader") is process_dataloader:
                del vars(strategy)["process_dataloader"]

        self._restore.append(restore)

    def detach(self) -> None:
        """Leave every loader as it was."""
        while self._restore:
            self._restore.pop()()

    def rows(self, trainer: L.Trainer, batch: Any) -> list[int] | None:
        """Indices of the present batch's rows, in the loader's dataset.

        Args:
            trainer: in a hook of a training batch.
            batch: the present one.

        Returns:
            ``None`` where they are not known.
        """
        fetcher = trainer.fit_loop._data_fetcher
        combined = getattr(fetcher, "_combined_loader", None)
        iterators = getattr(getattr(combined, "_iterator", None), "iterators", [])
        if len(iterators) != 1 or not isinstance(iterators[0], _BaseDataLoaderIter):
            return None
        noted = iterators[0]._sampler_iter
        if not isinstance(noted, _Noted):
            return None
        waiting = len(getattr(fetcher, "batches", []))  # fetched, and not trained on yet
        found = noted.batch(iterators[0]._num_yielded - 1 - waiting)
        return found if found is not None and len(found) == _length(batch) else None

    def _note(self, loader: DataLoader[Any]) -> None:
        own = vars(loader)
        if "_get_iterator" in own:  # noted already, or somebody else's
            return
        usual = loader._get_iterator
        own["_get_iterator"] = get_iterator = partial(_noting_iterator, loader, usual)

        def restore() -> None:
            if own.get("_get_iterator") is get_iterator:
                del own["_get_iterator"]
            kept: Any = own.get("_iterator")  # of persistent workers
            if isinstance(getattr(kept, "_index_sampler", None), _NotingSampler):
                kept._index_sampler = kept._index_sampler.sampler_of_batches

        self._restore.append(restore)


class _Noted:
    """An iterator over batches of indices that remembers the last of them."""

    def __init__(self, batches: Iterator[Any], most: int) -> None:
        self._batches = batches
        self._kept: deque[tuple[int, list[Any]]] = deque(maxlen=most)
        self._next = 0

    def __iter__(self) -> "_Noted":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        if isinstance(batch, list | tuple | Tensor):
            self._kept.append((self._next, list(batch)))
        self._next += 1
        return batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_batches":
            raise AttributeError(name)
        return getattr(self._batches, name)

    def batch(self, number: int) -> list[int] | None:
        """Indices of a batch, counted from the beginning of this pass over the data."""
        for kept, indices in self._kept:
            if kept == number:
                whole = [_whole(index) for index in indices]
                return None if None in whole else [i for i in whole if i is not None]
        return None


class _NotingSampler:
    """A loader's batch sampler, for the time in which an iterator is made."""

    def __init__(self, sampler: Any, most: int) -> None:
        self.sampler_of_batches = sampler
        self._most = most

    def __iter__(self) -> _Noted:
        return _Noted(iter(self.sampler_of_batches), self._most)

    def __len__(self) -> int:
        return len(self.sampler_of_batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sampler_of_batches":
            raise AttributeError(name)
        return getattr(self.sampler_of_batches, name)


def _noting_iterator(loader: DataLoader[Any], usual: Callable[[], Any]) -> Any:
    """Make the loader's iterator with a batch sampler that notes; the loader keeps its own.

    A loader refuses another batch sampler (rightly: the order of its data would change).
    """
    own = vars(loader)
    sampler = own["batch_sampler"]
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    own["batch_sampler"] = _NotingSampler(sampler, ahead + _SPARE)
    try:
        return usual()
    finally:
        own["batch_sampler"] = sampler


def _is_plain(loader: Any) -> bool:
    """Whether it makes its iterators as torch's loader does, by the batches of a sampler, in order.

    A loader of another class may read its samplers in another way.
    """
    kind = type(loader)
    return (
        isinstance(loader, DataLoader)
        and kind._get_iterator is DataLoader._get_iterator
        and kind.__iter__ is DataLoader.__iter__
        and loader.batch_sampler is not None
        and loader._dataset_kind == 0  # not iterable
        and getattr(loader, "in_order", True)
    )


def _whole(index: Any) -> int | None:
    if isinstance(index, Tensor) and index.numel() == 1:
        index = index.item()
    if isinstance(index, bool):
        return None
    try:
        return index.__index__()  # type: ignore[no-any-return]
    except (AttributeError, TypeError):
        return None


def _length(batch: Any) -> int:
    tensors = (t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim)
    return next((len(t) for t in tensors), -1)
