"""What a strategy wraps around a model: where trained parameters may change, and how it learns."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stablelightning.callbacks.shards import refuse_shards
from stablelightning.errors import ModelError, RecipeError


def refuse_fixed(trainer: L.Trainer, pl_module: L.LightningModule, *, name: str) -> None:
    """Say in words where it must not change in training which parameters are trained.

    Args:
        trainer: about to fit.
        pl_module: its module.
        name: who wants to change it, for the message.

    Raises:
        RecipeError: the strategy shards the model, or expects the same graph in every step.
        ModelError: the whole LightningModule is compiled.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> refuse_fixed(trainer, L.LightningModule(), name="UnfreezeGradually")
    """
    refuse_shards(
        trainer,
        needs=f"{name} needs whole parameters",
        remedy=f"use strategy='ddp' or one device, or remove {name}",
    )
    settings: dict[str, Any] = getattr(trainer.strategy, "_ddp_kwargs", {})
    if settings.get("static_graph"):
        raise RecipeError(
            f"{name} changes which parameters have gradients, and static_graph=True promises DDP "
            "that this never changes; set static_graph to false."
        )
    compiled = getattr(pl_module, "_compiler_ctx", None) or pl_module._compiled_call_impl
    if compiled is not None:
        raise ModelError(
            f"{name} changes which parameters are trained, and {type(pl_module).__name__} is "
            "compiled as a whole; compile the network inside it instead "
            "(self.network = torch.compile(network))."
        )


def renew_wrapper(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Wrap a model anew, since DDP looks once, when it wraps, at which parameters are trained.

    Gradients of what was opened since would stay those of each process. Every process must call
    this at the same place, between two steps. Around a model that is not wrapped it does nothing.

    Args:
        trainer: of the run.
        pl_module: its module, with ``requires_grad`` as it shall be.

    Raises:
        RecipeError: the strategy wraps the model in something that is not known.
    """
    strategy = trainer.strategy
    if strategy.model is pl_module or strategy.model is None:
        return
    if not isinstance(strategy, DDPStrategy) or not _is_ddp(strategy.model):
        raise RecipeError(
            "what is frozen can change where Lightning's DDPStrategy, or nothing, wraps the model,"
            f" got {type(strategy).__name__}; use strategy='ddp' or one device."
        )
    # The old one lets go of its hooks and its buckets before the new one takes memory.
    strategy.model = pl_module
    strategy.model = strategy._setup_model(pl_module)
    strategy._register_ddp_hooks()


def forget_compiled(pl_module: L.LightningModule) -> None:
    """Let compiled parts of a module be compiled anew, since torch gives up after a few times.

    Code that was compiled for other frozen parameters is of no use any more, and counts against
    the number of times that torch compiles a function before it runs it as it is.

    Args:
        pl_module: only looked at.
    """
    if any(_is_compiled(module) for module in pl_module.modules()):
        torch.compiler.reset()


def _is_ddp(model: nn.Module | None) -> bool:
    return isinstance(model, DistributedDataParallel)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
