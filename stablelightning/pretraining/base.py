"""What every pretraining objective has in common: a network that gives features, and its file."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.example import example_batch
from stablelightning.errors import DataError, ModelError
from stablelightning.mixin import StableMixin
from stablelightning.model.backbone_file import save_backbone
from stablelightning.model.cures import CHECKPOINT_KEY, recorded_treatments, repeat_treatments
from stablelightning.model.generators import preserved_generators
from stablelightning.model.head import put_back
from stablelightning.model.structure import watched_run
from stablelightning.model.summarize import select_output
from stablelightning.pretraining.head import take_head_off

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Where a checkpoint keeps the sizes that the objective's own layers were made for.
_SHAPES = "stablelightning_pretraining"
#: Rows of an example whose sizes are read: two, so that an axis of the batch cannot be overlooked.
_ROWS = 2


class Pretraining(StableMixin, L.LightningModule, ABC):
    """Base of the modules that train a network without the labels it is meant for.

    The network loses its classifier, if it has one, so that it gives features; an objective puts
    layers of its own behind them, which are thrown away afterwards, and says what a good feature is
    in ``loss(batch)``. Targets in batches are not looked at. It is an ordinary LightningModule:
    any Trainer trains it, with what :class:`~stablelightning.mixin.StableMixin` gives (optimizer,
    schedule, groups, ``train/loss``, ``val/loss``, ``test/loss``). ``forward`` and ``predict``
    give the features.

    An objective of your own needs ``loss(batch)``, and ``build`` if it has layers whose sizes
    follow from the network; ``task_metrics`` and ``compare`` log how good it is. What is random in
    it is drawn alike at every validation, so that the losses of two epochs can be compared.

    Args:
        network: gives features, or has a classifier behind them; changed in place: the classifier
            is taken off (:meth:`put_head_back` returns it).
        keep_head: take nothing off; for a network that gives features already and whose last layer
            is a plain linear one, which would be taken for a classifier.
        **kwargs: ``optimizer``, ``scheduler``, ``scheduler_interval``, ``monitor``,
            ``parameter_groups`` of :class:`~stablelightning.mixin.StableMixin`.

    Attributes:
        fitted: after a fit, what was logged of its last epoch.

    Raises:
        ModelError: ``network`` is not a module, is a LightningModule, or has no weights.

    Example:
        >>> from stablelightning.nn import MLP
        >>> class MeanOfPixels(Pretraining):
        ...     def build(self, input_shape, feature_shape):
        ...         self.readout = nn.Linear(feature_shape[-1], 1)
        ...
        ...     def loss(self, batch):
        ...         inputs = self.inputs(batch)
        ...         mean = self.readout(self.vectors(inputs))[:, 0]
        ...         return nn.functional.mse_loss(mean, inputs.flatten(1).mean(1))
        >>> module = MeanOfPixels(MLP(16, 10, hidden=[8]))
        >>> batch = torch.randn(5, 16), torch.zeros(5)
        >>> module.loss(module.ready(batch)).shape, module(batch[0]).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    #: What it is called in reports and in backbone files; an overlay of the same name.
    objective: ClassVar[str] = "pretraining"

    _compared: list[tuple[Tensor, Tensor]] | None = None

    #: Read by callbacks that would take the output for a prediction of the target.
    gives_features: ClassVar[bool] = True

    def __init__(self, network: nn.Module, *, keep_head: bool = False, **kwargs: Any) -> None:
        if not isinstance(network, nn.Module) or isinstance(network, L.LightningModule):
            raise ModelError(
                f"network must be a plain module, got {type(network).__name__}; pass an instance "
                "such as stablelightning.nn.ConvNet(1, 10), or the network inside of a "
                "LightningModule."
            )
        super().__init__(task=None, **kwargs)
        self.keep_head = keep_head
        # In a tuple, where no optimizer, checkpoint or device finds it.
        self._head = None if keep_head else take_head_off(network)
        self._shapes: dict[str, list[int]] = {}
        self.fitted: dict[str, float] = {}
        self.network = network

    # ---- what an objective defines -----------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Any) -> Any:
        """Loss of a batch: a scalar, or a dict with it as ``"loss"`` and more to be logged.

        Begin with ``inputs = self.inputs(batch)``.
        """

    def build(self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...]) -> None:
        """Make the layers behind the features; called once, before there is an optimizer.

        Args:
            input_shape: of one row of the inputs, such as ``(1, 8, 8)``.
            feature_shape: of what the network makes of it, such as ``(64,)``.
        """

    def picture(self, batch: Any) -> "Figure | None":
        """A picture of what was learned, drawn from test inputs; ``None`` where there is none."""
        return None

    def check(self, inputs: Tensor) -> None:
        """Refuse inputs that this objective can do nothing with, before anything is trained.

        Raises:
            DataError: they are such.
        """

    # ---- what it is given --------------------------------------------------------------------

    def inputs(self, batch: Any) -> Tensor:
        """The inputs of a batch, without its targets, and with the objective's layers ready.

        Raises:
            DataError: the network takes several inputs, or none that is a tensor of numbers, or
                the objective cannot use them.
        """
        inputs, _ = inputs_and_target(self.network, batch)  # type: ignore[arg-type]
        if isinstance(inputs, Mapping) and len(inputs) == 1:  # forward names it
            inputs = tuple(inputs.values())
        if isinstance(inputs, tuple | list) and len(inputs) == 1:
            inputs = inputs[0]
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim < 2:
            found = type(inputs).__name__
            if isinstance(inputs, Tensor):
                found = f"{inputs.dtype} {tuple(inputs.shape)}"
            raise DataError(
                f"{type(self).__name__} needs batches whose inputs are one float tensor (N, ...), "
                f"got {found}; let the data module give images or rows, with targets or without."
            )
        self.check(inputs)
        self._make_ready(inputs)
        return inputs

    def features(self, inputs: Tensor) -> Tensor:
        """What the network gives: ``(N, F)``, maps ``(N, C, h, w)`` or tokens ``(N, T, F)``.

        Raises:
            ModelError: it gives no tensor with a row for each input.
        """
        output = select_output(self.network(inputs))
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(inputs):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"{type(self.network).__name__} must give features (N, ...), a row for each input, "
                f"got {found} for {len(inputs)} inputs; pass the part that does."
            )
        return output

    def vectors(self, inputs: Tensor) -> Tensor:
        """Features ``(N, F)``: maps and tokens are averaged over their places."""
        return pooled(self.features(inputs))

    def compare(self, output: Tensor, target: Tensor) -> None:
        """Hand over what the metrics of ``task_metrics(output)`` compare; for ``loss`` to call.

        In training nothing happens: metrics are those of validation and test.
        """
        if self._compared is not None:
            self._compared.append((output.detach(), target.detach()))

    @property
    def channels(self) -> int | None:
        """Colour channels of the data, so that rows of pixels are drawn as images, if it says."""
        channels = getattr(getattr(self._trainer, "datamodule", None), "in_channels", None)
        return channels if channels in (1, 3) else None

    def ready(self, batch: Any) -> Any:
        """Make the objective's layers for batches like this one, and return it.

        ``Trainer.fit`` does so by itself, before it asks for the optimizer. Call it where you make
        an optimizer by hand.
        """
        self.inputs(batch)
        return batch

    def _scored(self, stage: str, batch: Any, place: tuple[int, int]) -> Any:
        number, loader = place
        self._compared = []
        try:
            with preserved_generators(seed=number):
                loss = self._evaluate(stage, batch, place)
            for output, target in self._compared:
                self._log_metrics(f"{stage}_{loader}", output, (output, target))
        finally:
            self._compared = None
        return loss

    def _make_ready(self, inputs: Tensor) -> None:
        if self._shapes:
            return
        with torch.inference_mode(False), torch.no_grad():
            few = inputs[:_ROWS].detach().clone()
            features = watched_run(self.network, lambda: self.features(few), [], _nothing)
            self._build({"inputs": list(inputs.shape[1:]), "features": list(features.shape[1:])})
            self.to(_device_of(self.network))

    def _build(self, shapes: Mapping[str, list[int]]) -> None:
        self.build(tuple(shapes["inputs"]), tuple(shapes["features"]))
        self._shapes = {name: list(shape) for name, shape in shapes.items()}

    # ---- the module --------------------------------------------------------------------------

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of inputs."""
        return self.features(inputs)

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        """The inputs; no target is ever looked at."""
        return self.inputs(batch), None

    def configure_callbacks(self) -> Any:
        """Add none; have the layers made before callbacks look at the module."""
        if self.trainer.training and not self._shapes:
            self._callbacks().insert(0, MakeReady())
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Before fitting, make the objective's layers for the rows of the training data."""
        callbacks = self._callbacks()
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, MakeReady)]
        if stage == "fit":
            self.ready_for_training()

    def ready_for_training(self) -> None:
        """Make the layers for the training data of the Trainer, unless they are there.

        Raises:
            DataError: there is no training data, or it does not suit the objective.
        """
        if not self._shapes:
            self.ready(example_batch(self.trainer, self))

    def _callbacks(self) -> list[L.Callback]:
        return self.trainer.callbacks  # type: ignore[attr-defined,no-any-return]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Log the loss and the metrics as ``val/...``, drawn alike at every epoch."""
        return self._scored("val", batch, (batch_idx, dataloader_idx))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Log the loss and the metrics as ``test/...``, drawn as in validation."""
        return self._scored("test", batch, (batch_idx, dataloader_idx))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Features of the batch's inputs, by one plain pass."""
        return self(self.inputs(batch))

    def on_fit_end(self) -> None:
        """Remember the numbers of the last epoch: a test clears the Trainer's."""
        self.fitted = {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights what is needed to make the layers again."""
        checkpoint[_SHAPES] = self._shapes
        if treatments := recorded_treatments(self):
            checkpoint[CHECKPOINT_KEY] = treatments

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the same layers, so that the weights find their places."""
        shapes = checkpoint.get(_SHAPES)
        if shapes and not self._shapes:
            self._build(shapes)
            self.to(_device_of(self.network))  # not self.device: in setup that is where it will be
        repeat_treatments(self, checkpoint.get(CHECKPOINT_KEY, []))

    # ---- the backbone ------------------------------------------------------------------------

    def export_backbone(
        self, path: str | os.PathLike[str], *, state: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the network, without the head that it lost, as a backbone file.

        Args:
            path: of the file; an old one is replaced.
            state: the state dict of a checkpoint of this module, whose weights are written in place
                of the present ones.

        Returns:
            The path.

        Raises:
            OutputError: the file cannot be written.
        """
        weights = None
        if state is not None:
            own = "network."
            weights = {n.removeprefix(own): v for n, v in state.items() if n.startswith(own)}
        return save_backbone(
            self.network,
            path,
            architecture=_description(self.hparams.get("network")),
            objective=self.objective,
            head=None if self._head is None else self._head.name,
            state=weights,
        )

    def put_head_back(self) -> nn.Module:
        """Give the network the head that it came with, untrained, and return it.

        For fine-tuning in the same program; this module cannot pretrain it any more.
        """
        if self._head is not None:
            put_back(self.network, self._head.head.to(self.device), self._head.name)
            self._head = None
        return self.network


class MakeReady(L.Callback):
    """Has a pretraining module make its layers before any other callback's ``setup``.

    Lightning's order is callbacks first, the module last: a moving average of the weights would be
    copied from a module that is not complete. It puts itself into the Trainer's list, and the
    module's ``setup`` takes it out again.

    Example:
        >>> MakeReady().state_key
        'MakeReady'
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make them."""
        if isinstance(pl_module, Pretraining):
            pl_module.ready_for_training()


def pooled(features: Tensor) -> Tensor:
    """Average maps ``(N, C, h, w)`` and tokens ``(N, T, F)`` over their places, to ``(N, F)``.

    Example:
        >>> pooled(torch.ones(2, 3, 4, 4)).shape, pooled(torch.ones(2, 7, 5)).shape
        (torch.Size([2, 3]), torch.Size([2, 5]))
    """
    if features.ndim == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


def _description(network: Any) -> dict[str, Any] | None:
    """What a recipe says of the network, as plain types; ``None`` for one made in Python."""
    if hasattr(network, "as_dict"):  # as jsonargparse keeps it
        network = network.as_dict()
    if not isinstance(network, Mapping) or "class_path" not in network:
        return None
    return {key: network[key] for key in ("class_path", "init_args") if key in network}


def _device_of(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _nothing(*_: Any) -> None: ...
