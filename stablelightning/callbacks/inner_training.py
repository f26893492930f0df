"""A training before the training, in a Trainer of its own that leaves nothing but its module."""

import inspect
import logging
import math
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from stablelightning.callbacks.clip_base import ClipGradients
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.callbacks.optimizer_modes import SwitchOptimizerModes
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.errors import RecipeError
from stablelightning.model.generators import undisturbed_generators

#: Callbacks without which a training may not be what its module was made for.
_NEEDED = (InitializeWeights, ClipGradients, SwitchOptimizerModes)
#: What accelerators are called where Lightning is asked for one.
_ACCELERATORS = {"cpu": "cpu", "cuda": "gpu", "mps": "mps", "xla": "tpu"}
#: Who speaks for Lightning, and is told to be quiet meanwhile.
_SPEAKERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    # Of the stand-alone packages, which take over what both share once they are imported.
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
)
_OURS = "Pretraining: "
#: Lines of progress in a whole training.
_LINES = 10
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
#: Where validation losses are usually logged.
_VALIDATION = ("val/loss", "val_loss")


@dataclass
class Losses:
    """How an inner training went.

    Args:
        train: mean loss of the training batches of each epoch.
        validation: loss of each validation; empty without one.
        kept: epoch whose weights the module has, counted from 1.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    kept: int = 0


def train_inside(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: L.LightningDataModule,
    *,
    max_epochs: int,
    seed: int,
    callbacks: Sequence[L.Callback] = (),
) -> Losses:
    """Train ``module`` from within ``setup`` of another training, on the same devices.

    The outer Trainer's accelerator, processes, precision, accumulation, clipping and limits hold;
    it logs nothing, writes no files, and says a line now and then. Generators, signal handlers and
    warning filters are as before, and so is the outer Trainer. The weights of the epoch with the
    smallest validation loss are kept, those of the last where there is no validation.

    Under DDP all processes train, as the outer training will; waiting for one of them would end
    after ten minutes, which is what NCCL bears.

    Args:
        trainer: the outer one, inside ``setup`` of one of its callbacks.
        module: trained in place; not the outer module.
        data: its data.
        max_epochs: >= 1.
        seed: of everything drawn meanwhile; each process gets one of its own.
        callbacks: further ones of the inner Trainer.

    Raises:
        RecipeError: the strategy is neither that of one device nor DDP.
    """
    record = _Record(max_epochs)
    with undisturbed_generators(), _signals_kept(), _environment_kept(), _hushed():
        seed_generators(seed + trainer.global_rank)
        inner = _like(trainer, [*callbacks, record], max_epochs)
        try:
            inner.fit(module, datamodule=data)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
                raise KeyboardInterrupt from error
            raise
    record.put_best_back(module)
    return record.losses


def like_those_of(trainer: L.Trainer) -> list[L.Callback]:
    """Callbacks in the settings of those of a Trainer that any training of its module needs.

    Initialization, clipping, and the modes of schedule-free optimizers.

    Args:
        trainer: not changed; nor are its callbacks.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", barebones=True, callbacks=[InitializeWeights()])
        >>> [type(callback).__name__ for callback in like_those_of(trainer)]
        ['InitializeWeights']
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    wanted = [callback for callback in callbacks if isinstance(callback, _NEEDED)]
    return [
        type(callback)(
            **{
                name: getattr(callback, name)
                for name in inspect.signature(type(callback)).parameters
            }
        )
        for callback in wanted
    ]


def tell(text: str) -> None:
    """Say something of a training inside another, on the first process.

    Example:
        >>> tell("30 epochs on DigitsData")
    """
    rank_zero_info(_OURS + text)


def seed_generators(seed: int) -> None:
    """Seed torch, Python and, where it is imported, NumPy.

    Lightning's ``seed_everything`` would leave the seed in the environment.

    Example:
        >>> with undisturbed_generators():
        ...     seed_generators(3)
    """
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def _like(trainer: L.Trainer, callbacks: list[L.Callback], max_epochs: int) -> L.Trainer:
    connector: Any = trainer._accelerator_connector
    outer: Any = trainer.strategy
    devices: Any = [outer.root_device]
    strategy: Any = "auto"
    plugins: list[Any] = []
    if trainer.world_size > 1:
        refuse_shards(trainer, needs="training inside a training needs the whole model", remedy=_DO)
        if not isinstance(outer, DDPStrategy):
            raise RecipeError(
                "training inside a training needs one device or DDP, got "
                f"{type(outer).__name__}; {_DO}."
            )
        backend = outer.process_group_backend
        strategy = DDPStrategy(process_group_backend=backend, **outer._ddp_kwargs)
        devices = outer.parallel_devices
        plugins = [outer.cluster_environment]
    on_cpu = devices[0].type in ("cpu", "mps", "xla")
    options: dict[str, Any] = {
        "accelerator": _ACCELERATORS.get(devices[0].type, "auto"),
        "devices": len(devices) if on_cpu else [device.index or 0 for device in devices],
        "num_nodes": trainer.num_nodes,
        "strategy": strategy,
        "plugins": plugins,
        "precision": trainer.precision,
        "sync_batchnorm": getattr(outer, "_layer_sync", None) is not None,
        "use_distributed_sampler": connector.use_distributed_sampler,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "limit_train_batches": trainer.limit_train_batches,
        "limit_val_batches": trainer.limit_val_batches,
        "fast_dev_run": trainer.fast_dev_run,  # type: ignore[attr-defined]
        "default_root_dir": trainer.default_root_dir,
    }
    inner = L.Trainer(
        **options,
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    inner.strategy._launcher = None  # the processes are there
    return inner


_DO = "pretrain in a run of its own, and give the file that it leaves as weights"


class _Record(L.Callback):
    """Keeps the losses and the best weights, and says how far it is."""

    def __init__(self, max_epochs: int) -> None:
        self.losses = Losses()
        self._epochs = max_epochs
        self._sum: Tensor | None = None
        self._count = 0
        self._best: dict[str, Tensor] = {}

    def on_train_batch_end(self, *arguments: Any) -> None:
        outputs = arguments[2]
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            total = loss.detach().float()
            self._sum = total if self._sum is None else self._sum + total
            self._count += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        settings = getattr(pl_module, "_stable_settings", None)
        names = [*([settings.monitor] if settings else []), *_VALIDATION]
        logged = (trainer.callback_metrics.get(name) for name in names)
        loss = next((float(value) for value in logged if value is not None), math.nan)
        before = [known for known in self.losses.validation if math.isfinite(known)]
        self.losses.validation.append(loss)
        if math.isfinite(loss) and loss < min(before, default=math.inf):
            self.losses.kept = trainer.current_epoch + 1
            state = pl_module.state_dict()
            self._best = {name: value.detach().cpu().clone() for name, value in state.items()}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = math.nan if self._sum is None else float(self._sum) / self._count
        self._sum, self._count = None, 0
        self.losses.train.append(loss)
        done = len(self.losses.train)
        if not self._best:
            self.losses.kept = done
        if done % max(1, self._epochs // _LINES) == 0 or done == self._epochs:
            told = f"epoch {done} of {self._epochs}, loss {loss:.3g}"
            if self.losses.validation:
                told += f", validation {self.losses.validation[-1]:.3g}"
            tell(told)

    def put_best_back(self, module: L.LightningModule) -> None:
        if self._best:
            module.load_state_dict(self._best)


# ---- what is left as it was ---------------------------------------------------------------------


@contextmanager
def _signals_kept() -> Iterator[None]:
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one that Python did not set
                    signal.signal(number, handler)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Lightning takes WORLD_SIZE away when a DDP training ends; the outer one has just begun."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def _hushed() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _SPEAKERS]
    for logger in loggers:
        logger.addFilter(_only_ours)
    try:
        with warnings.catch_warnings():
            # The reader of a recipe can do nothing about the settings of this Trainer.
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_only_ours)


def _only_ours(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.getMessage().startswith(_OURS)
