"""How a batch of any LightningModule becomes the model's inputs and the target."""

import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from stablelightning.errors import DataError

#: Keys (of a dict) and attributes (of an object) that are understood, the first present one counts.
TARGET_KEYS = ("target", "targets", "label", "labels", "y")
INPUT_KEYS = ("inputs", "input", "x", "image", "images", "features")

#: A ``forward`` whose only argument has this name takes the batch as it comes.
_WHOLE_BATCH = "batch"

_REMEDY = (
    "give the module a method inputs_and_target(batch), or override "
    "EstimateUncertainty.inputs_and_target."
)


def inputs_and_target(pl_module: L.LightningModule, batch: Any) -> tuple[Any, Any]:
    """Split a batch into what ``forward`` takes and what it is held against.

    The rule, in order; r is the number of arguments that ``forward`` requires:

    1. A method ``inputs_and_target(batch)`` of the module decides (``StableMixin`` has one).
    2. A tensor is the input; there is no target.
    3. A tuple or list: the first r entries are the inputs, the next is the target, further ones
       (weights, identifiers) are left alone. If ``forward`` requires all of them (a language model
       that also reads its target), the last is the target as well. One entry alone is the input.
    4. A dict: the target is the first of ``target targets label labels y``; the inputs are the
       entries that ``forward`` names as its arguments, else the first of ``inputs input x image
       images features``.
    5. Any other object that has one of those target names as an attribute (a graph) is the input.

    A ``forward(self, batch)`` gets the whole batch in every case.

    Args:
        pl_module: the module whose ``forward`` will be called.
        batch: what the dataloader gave, on the device, after ``on_after_batch_transfer``.

    Returns:
        The inputs (a tensor; a tuple for ``forward(*inputs)``; a dict for ``forward(**inputs)``)
        and the target, ``None`` where there is none.

    Raises:
        DataError: the batch fits none of these.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> inputs, target = inputs_and_target(BoringModel(), [torch.zeros(4, 32), torch.ones(4)])
        >>> inputs.shape, target.shape
        (torch.Size([4, 32]), torch.Size([4]))
    """
    own = getattr(pl_module, "inputs_and_target", None)
    if callable(own):
        inputs, target = own(batch)
        return inputs, target
    arguments = _Arguments(pl_module)
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, tuple | list) and batch:
        return _from_sequence(arguments, batch)
    if isinstance(batch, Mapping):
        return _from_mapping(arguments, dict(batch))
    for key in TARGET_KEYS:
        if hasattr(batch, key):
            return (batch,), getattr(batch, key)
    raise DataError(
        "a batch must be a tensor, a pair (inputs, target), or a dict with a key like "
        f"{INPUT_KEYS[0]!r}, got {type(batch).__name__}; {_REMEDY}"
    )


class _Arguments:
    """What ``forward`` asks for."""

    def __init__(self, pl_module: L.LightningModule) -> None:
        parameters = inspect.signature(pl_module.forward).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.required = [p.name for p in named if p.default is p.empty]
        self.positional = len(named)
        self.any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.whole_batch = self.required == [_WHOLE_BATCH]
        self.described = f"{type(pl_module).__name__}.forward({', '.join(self.names)})"


def _from_sequence(arguments: _Arguments, batch: tuple[Any, ...] | list[Any]) -> tuple[Any, Any]:
    size = len(batch)
    target = batch[-1] if size > 1 else None
    if arguments.whole_batch:
        return (batch,), target
    required = len(arguments.required) or max(size - 1, 1)
    if size == 1 or required == size:
        return _unwrapped(batch), target
    if required > size:
        raise DataError(
            f"a batch must hold what {arguments.described} requires ({required} entries), got a "
            f"{type(batch).__name__} of {size}; {_REMEDY}"
        )
    if size > required + 1 and arguments.positional > required:
        # (x, mask, y) for forward(x, mask=None), or (x, y, weight)? A guess would score wrongly.
        raise DataError(
            f"a batch of {size} entries does not say which is the target when "
            f"{arguments.described} takes {required} to {arguments.positional} of them; {_REMEDY}"
        )
    return _unwrapped(batch[:required]), batch[required]


def _unwrapped(entries: tuple[Any, ...] | list[Any]) -> Any:
    return _one(entries[0]) if len(entries) == 1 else tuple(entries)


def _one(entry: Any) -> Any:
    """One argument, wrapped where it would otherwise be spread over several."""
    return entry if isinstance(entry, Tensor) else (entry,)


def _from_mapping(arguments: _Arguments, batch: dict[str, Any]) -> tuple[Any, Any]:
    target_key = next((key for key in TARGET_KEYS if key in batch), None)
    target = batch[target_key] if target_key is not None else None
    if arguments.whole_batch:
        return (batch,), target
    others = {key: value for key, value in batch.items() if key != target_key}
    if arguments.required and set(arguments.required) <= set(others):
        return _accepted(arguments, others), target
    for key in INPUT_KEYS:
        if key in others and len(arguments.required) <= 1:
            return _one(others[key]), target
    if arguments.required and set(arguments.required) <= set(batch):
        return _accepted(arguments, batch), target
    if arguments.any_keyword and not arguments.required and others:
        return others, target
    raise DataError(
        f"a batch must hold what {arguments.described} takes, or one of the keys "
        f"{', '.join(INPUT_KEYS)}; got a dict with the keys {', '.join(map(str, batch))}; {_REMEDY}"
    )


def _accepted(arguments: _Arguments, entries: dict[str, Any]) -> dict[str, Any]:
    if arguments.any_keyword:
        return entries
    return {key: value for key, value in entries.items() if key in arguments.names}
