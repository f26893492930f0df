"""The weights that a training keeps, put into the module for a while, and the files they lie in."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from stablelightning.callbacks.kept import best_checkpoint
from stablelightning.errors import StableLightningWarning
from stablelightning.files import written_whole

#: What torch.compile puts before the names of what it wraps.
_COMPILED = "_orig_mod."
_DIGEST_BYTES = 16


def fingerprint(module: nn.Module) -> str:
    """A short text that tells the weights of a module from any others.

    Names, shapes, types and bits of every parameter and persistent buffer; not the device.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = fingerprint(net)
        >>> _ = net.bias.data.add_(1.0)
        >>> fingerprint(net) == before
        False
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name, value in sorted(_tensors(module.state_dict()).items()):
        plain = value.detach().cpu().contiguous()
        words = f"{name.replace(_COMPILED, '')} {plain.dtype} {tuple(plain.shape)}"
        digest.update(words.encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


@contextmanager
def best_weights(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """Inside, the module has the weights of the best checkpoint and is on the strategy's device.

    Without a checkpoint, or where it does not fit the module any more, it has those that it has.
    Every process takes part: the first one reads the file, the others are given what is in it.

    Args:
        trainer: after a fit.
        pl_module: its module; afterwards its weights and its device are as they were.
    """
    device = pl_module.device
    pl_module.to(trainer.strategy.root_device)
    before = None
    try:
        best = _best_state(trainer, pl_module)
        if best is not None or trainer.world_size > 1:  # statistics of batch norm are each one's
            before = {n: v.detach().clone() for n, v in _tensors(pl_module.state_dict()).items()}
            _write(best or {}, pl_module)
            _from_first(trainer, pl_module)
        yield
    finally:
        if before is not None:
            _write(before, pl_module)
        pl_module.to(device)


def _best_state(trainer: L.Trainer, pl_module: L.LightningModule) -> Mapping[str, Any] | None:
    path = best_checkpoint(trainer) if trainer.is_global_zero else None
    if path is None:
        return None
    state: Mapping[str, Any] = _read(path)["state_dict"]
    own = _tensors(pl_module.state_dict())
    if {n: v.shape for n, v in _tensors(state).items()} != {n: v.shape for n, v in own.items()}:
        rank_zero_warn(
            f"{path.name} does not fit the model as it is now, so that calibration is fitted to "
            "the last weights; test with those.",
            category=StableLightningWarning,
        )
        return None
    return state


def keep_in_checkpoints(
    trainer: L.Trainer, states: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> list[Path]:
    """Add the states of callbacks to the checkpoints that hold these very weights; for process 0.

    Of every ``ModelCheckpoint`` its best and its last file. A file is rewritten whole or not at
    all, and everything else in it stays.

    Args:
        trainer: after a fit.
        states: of callbacks, by their ``state_key``; plain values and tensors.
        weights: of the module, by name.

    Returns:
        The files that were rewritten.
    """
    written, own = [], _tensors(weights)
    for path in _files(trainer):
        checkpoint = _read(path)
        if not _same_weights(_tensors(checkpoint.get("state_dict", {})), own):
            continue
        checkpoint["callbacks"] = {**checkpoint.get("callbacks", {}), **states}
        with written_whole(path) as temporary:
            torch.save(checkpoint, temporary)
        written.append(path)
    return written


def _files(trainer: L.Trainer) -> list[Path]:
    found: dict[Path, None] = {}
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, ModelCheckpoint):
            for path in (keeper.best_model_path, keeper.last_model_path):
                if path and Path(path).is_file():
                    found[Path(path).resolve()] = None
    return list(found)


def _read(path: Path) -> dict[str, Any]:
    # Written by this very run, so that objects in it may be trusted.
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return checkpoint


def _same_weights(kept: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    return kept.keys() == weights.keys() and all(
        torch.equal(value, weights[name].cpu()) for name, value in kept.items()
    )


def _write(state: Mapping[str, Any], pl_module: L.LightningModule) -> None:
    own = _tensors(pl_module.state_dict())
    with torch.no_grad():
        for name, value in _tensors(state).items():
            own[name].copy_(value)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _from_first(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    if trainer.world_size > 1:
        for value in _tensors(pl_module.state_dict()).values():
            torch.distributed.broadcast(value, 0)
