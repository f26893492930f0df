"""StableModule: any network as a LightningModule, so that a recipe needs no Python."""

from typing import Any

import lightning as L
from torch import nn

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.errors import ModelError
from stablelightning.mixin import StableMixin
from stablelightning.model.cures import CHECKPOINT_KEY, recorded_treatments, repeat_treatments
from stablelightning.model.prediction import Task


class StableModule(StableMixin, L.LightningModule):
    """A network, trained, tested and predicted with by :class:`~stablelightning.mixin.StableMixin`.

    In a recipe::

        model:
          class_path: stablelightning.module.StableModule
          init_args:
            task: classification
            network:
              class_path: stablelightning.nn.MLP
              init_args: {in_features: 64, out_features: 10}

    Args:
        network: any module; its ``forward`` takes what a batch holds before the target. The number
            of classes, labels or targets is that of its outputs.
        task: ``"classification"`` (logits ``(N, C, ...)``), ``"multilabel"`` (logits ``(N, L)``) or
            ``"regression"`` (``(N,)``, ``(N, D)`` or a ``Gaussian``).
        **kwargs: ``optimizer``, ``scheduler``, ``scheduler_interval``, ``monitor``, ``samples``,
            ``parameter_groups`` of :class:`~stablelightning.mixin.StableMixin`.

    A checkpoint of a recipe holds the network's description, so that
    ``StableModule.load_from_checkpoint(path)`` is enough. One of a network made in Python holds
    its weights only: ``StableModule.load_from_checkpoint(path, network=network)``.

    Raises:
        ModelError: ``network`` is not a module, or is a LightningModule.

    Example:
        >>> import torch
        >>> from stablelightning.nn import MLP
        >>> module = StableModule(MLP(4, 3), task="classification", samples=10)
        >>> module.predict_step(torch.randn(5, 4), 0).mean.shape
        torch.Size([5, 3])
    """

    def __init__(self, network: nn.Module, task: Task, **kwargs: Any) -> None:
        if not isinstance(network, nn.Module):
            raise ModelError(
                f"network must be a module, got {type(network).__name__}; "
                "pass an instance such as stablelightning.nn.MLP(64, 10), not its class or name."
            )
        if isinstance(network, L.LightningModule):
            raise ModelError(
                f"network must be a plain module, got {type(network).__name__}, a LightningModule; "
                "use it as the model itself."
            )
        super().__init__(task=task, **kwargs)
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return self.network(*args, **kwargs)

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch by the rule for the network's own ``forward``."""
        return inputs_and_target(self.network, batch)  # type: ignore[arg-type]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights what cures did to the structure."""
        if treatments := recorded_treatments(self):
            checkpoint[CHECKPOINT_KEY] = treatments

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Do the same to the structure again, so that the weights find their places."""
        repeat_treatments(self, checkpoint.get(CHECKPOINT_KEY, []))
