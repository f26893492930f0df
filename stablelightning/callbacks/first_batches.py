"""The first batches of training, before training, and without a trace."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from stablelightning.errors import DataError
from stablelightning.model.generators import undisturbed_generators


def first_batches(trainer: L.Trainer, pl_module: L.LightningModule, number: int) -> list[Any]:
    """Read the first batches that ``fit`` would see, as the module's ``training_step`` gets them.

    For ``setup`` of a callback: the data module is set up, the loaders of the fit loop are not.
    A loader that is made on every call is read from its beginning; every global generator, the
    loader's own, and its place where it can tell it (``state_dict``), is left as it was, so that
    training sees the same batches as without this.

    Args:
        trainer: about to fit.
        pl_module: its module, whose batch transfer hooks are run.
        number: at most so many, >= 1.

    Returns:
        Batches on the device of the module's parameters; fewer where the data ends.

    Raises:
        DataError: there is no training data, or it can be read only once.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def setup(self, trainer, pl_module, stage):
        ...         self.shapes = [tuple(b.shape) for b in first_batches(trainer, pl_module, 2)]
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.shapes
        [(1, 32), (1, 32)]
    """
    source, device = training_source(trainer, pl_module)
    batches: list[Any] = []
    with undisturbed_generators():
        loader = source.dataloader()
        with _own_state_kept(loader):
            combined = _combined(loader)
            for batch, _, _ in combined:
                moved = pl_module._apply_batch_transfer_handler(batch, device=device)
                batches.append(moved)
                if len(batches) == number:
                    break
            combined.reset()  # ends worker processes
    if not batches:
        raise DataError(
            f"{type(pl_module).__name__} needs training data to be looked at, and its training "
            "loader is empty."
        )
    return batches


def training_source(trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[Any, torch.device]:
    """Where the training loader comes from, and the device that its batches belong on.

    Returns:
        Lightning's data source, whose ``dataloader()`` makes the loader, and the device of the
        module's parameters (the CPU for those that hold no numbers yet).

    Raises:
        DataError: there is no training data.
    """
    source = trainer.fit_loop._data_source
    if source.instance is None or not source.is_defined():
        raise DataError(
            f"{type(pl_module).__name__} needs training data to be looked at, and there is none; "
            "give a train_dataloader, or a data module."
        )
    parameter = next(pl_module.parameters(), None)
    if parameter is None or parameter.is_meta:
        return source, torch.device("cpu")
    return source, parameter.device


def joined(batches: list[Any]) -> Any:
    """One batch of the rows of all, or the first alone where they cannot be joined.

    Tensors are joined along their first axis. Batches of one row stay alone: what depends on the
    batch's size (batch norm) must be seen as it will be.

    Example:
        >>> rows, target = joined([(torch.ones(2, 3), torch.zeros(2))] * 2)
        >>> rows.shape, target.shape
        (torch.Size([4, 3]), torch.Size([4]))
    """
    first, *others = batches
    rows = next((len(t) for t in tree_leaves(first) if isinstance(t, Tensor) and t.ndim), 0)
    if not others or rows <= 1:
        return first
    leaves, spec = tree_flatten(first)
    columns = [leaves]
    for batch in others:
        more, other = tree_flatten(batch)
        if other != spec or not all(map(_fit, leaves, more)):
            return first
        columns.append(more)
    return tree_unflatten([torch.cat(parts) for parts in zip(*columns, strict=True)], spec)


def _fit(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.ndim > 0 and one.ndim == other.ndim and one.shape[1:] == other.shape[1:]


def _combined(loader: Any) -> CombinedLoader:
    if isinstance(loader, CombinedLoader):
        return loader
    return CombinedLoader(loader, "max_size_cycle")  # as the fit loop does


@contextmanager
def _own_state_kept(loader: Any) -> Iterator[None]:
    """Leave what loaders and samplers hold by themselves, generators and places, as it was."""
    loaders = tree_leaves(loader.iterables if isinstance(loader, CombinedLoader) else loader)
    for leaf in loaders:
        if isinstance(leaf, Iterator):
            raise DataError(
                f"the training data can be read only once (it is a {type(leaf).__name__}), and "
                "training needs its first batches; give a DataLoader, or what begins anew."
            )
    holders = [h for leaf in loaders for h in (leaf, getattr(leaf, "sampler", None))]
    generators = [getattr(holder, "generator", None) for holder in holders]
    states = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    resumable: list[Any] = [h for h in holders if hasattr(h, "load_state_dict")]
    places = [(holder, copy.deepcopy(holder.state_dict())) for holder in resumable]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        for holder, place in places:
            holder.load_state_dict(place)
