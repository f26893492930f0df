"""StableMixin: the steps, metrics, optimizer and uncertain predictions of a LightningModule."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torchmetrics import Metric

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.padding import rows_in, without_repeats
from stablelightning.checks import check_whole
from stablelightning.errors import DataError, ModelError, NothingRandomError, RecipeError
from stablelightning.functional.uncertainty import is_probabilities
from stablelightning.hyperparameters import GroupsCallable, Settings, keep_hyperparameters
from stablelightning.inheritance import check_bases, give_way
from stablelightning.model.backbones import without_weights
from stablelightning.model.inputs import spread
from stablelightning.model.prediction import Task
from stablelightning.model.sample import mc_dropout
from stablelightning.model.summarize import select_output
from stablelightning.model.task import TASKS
from stablelightning.nn.heads import Distribution
from stablelightning.optimization import configured

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object

#: What the mixin gives and a user's class, before or after it in the bases, keeps as its own.
_DEFAULTS = (
    "configure_optimizers",
    "inputs_and_target",
    "loss",
    "predict_step",
    "task_metrics",
    "test_step",
    "training_step",
    "validation_step",
)

#: How a mean over the epoch is logged, that of all processes.
_OF_THE_EPOCH: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _eager(function: _Function) -> _Function:
    """Keep a method out of torch.compile, which takes the steps of a module whole.

    Metrics, logging and sampling do not compile. The network that is called from here still does:
    Lightning compiles ``forward`` on its own as well.
    """
    return cast(_Function, torch.compiler.disable(function))


class StableMixin(_Base):
    """What a LightningModule needs besides its network: mixed in before ``L.LightningModule``.

    You write ``__init__`` and ``forward``, and ``loss(batch)`` if the default of the task is not
    what you want. The mixin gives the training, validation, test and predict steps, the logging,
    the metrics, the optimizer and its schedule. Any of these that your class defines stays yours.

    Logged are ``train/loss`` (each step) and ``train/loss_epoch``, and for ``val`` and ``test`` the
    ``loss`` and the metrics of the task: ``accuracy`` and ``f1``, or ``rmse`` and ``mae``.

    Args:
        task: ``"classification"`` (logits ``(N, C, ...)``), ``"multilabel"`` (logits ``(N, L)``) or
            ``"regression"``; a class attribute of that name does as well. ``None``: no default loss
            and no metrics, you define ``loss``.
        optimizer: makes the optimizer from the parameters: a class, a ``functools.partial``, or in
            a recipe its ``class_path`` and ``init_args``. ``None``: Adam with PyTorch's defaults.
        scheduler: makes the learning-rate scheduler from the optimizer; ``None`` for a constant
            rate.
        scheduler_interval: whether the scheduler steps at every ``"epoch"`` or every ``"step"``;
            ``None`` for what it is made for (those of :mod:`stablelightning.model.schedules` say).
        monitor: the logged key that a ``ReduceLROnPlateau`` without its own ``monitor`` watches.
        samples: forward passes of ``predict_step``; 0 for plain predictions without uncertainty.
        parameter_groups: makes the optimizer's groups from the module and a first optimizer, as
            :class:`~stablelightning.model.groups.ParameterGroups`; ``None`` for one group.
        **kwargs: for the next base.

    Hyperparameters: numbers, strings, booleans and containers of these among your constructor's
    arguments are kept in checkpoints (and not logged), so that ``Net.load_from_checkpoint(path)``
    builds the network again. Pass anything else, such as a module, to ``load_from_checkpoint``.

    Raises:
        ModelError: when the class is made: the mixin is not first, its ``__init__`` is skipped, or
            your ``__init__`` takes no ``**kwargs`` to hand on.
        RecipeError: a setting is out of its range.

    Source:
        Predictions: Gal, Ghahramani 2016, arXiv:1506.02142.

    Example:
        >>> import lightning as L
        >>> class Net(StableMixin, L.LightningModule):
        ...     def __init__(self, width: int = 8, **kwargs):
        ...         super().__init__(task="classification", **kwargs)
        ...         self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(), nn.Linear(width, 3))
        ...
        ...     def forward(self, x):
        ...         return self.net(x)
        >>> batch = (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> Net(samples=20).predict_step(batch, 0).epistemic.shape
        torch.Size([5])
    """

    task: Task | None = None
    _stable_settings = Settings()
    _stable_checked_logits = False
    _stable_counts = True  #: whether the batch at hand is new in any row

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls, mixin=StableMixin, settings=_SETTING_NAMES)
        give_way(cls, mixin=StableMixin, names=_DEFAULTS)

    def __init__(
        self,
        *,
        task: Task | None = None,
        optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] | None = None,
        monitor: str = "val/loss",
        samples: int = 50,
        parameter_groups: GroupsCallable | None = None,
        **kwargs: Any,
    ) -> None:
        if task is not None and task not in TASKS:
            raise RecipeError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        if scheduler_interval not in ("epoch", "step", None):
            raise RecipeError(
                f"scheduler_interval must be 'epoch' or 'step', got {scheduler_interval!r}."
            )
        check_whole("samples", samples, least=0, hint="0 predicts plainly")
        super().__init__(**kwargs)
        if task is not None:
            self.task = task
        self._stable_settings = Settings(
            optimizer, scheduler, scheduler_interval, monitor, samples, parameter_groups
        )
        keep_hyperparameters(self)

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's; a backbone's pretrained weights are neither fetched nor read again.

        Unless ``strict=False``: the checkpoint may then bring fewer weights than there are.
        """
        with nullcontext() if kwargs.get("strict") is False else without_weights():
            return super().load_from_checkpoint(*args, **kwargs)

    # ---- what a user may want to define ------------------------------------------------------

    def loss(self, batch: Any) -> Any:
        """Loss of a batch; define your own, or let the task choose.

        The defaults: cross entropy, binary cross entropy (both of logits), mean squared error, or
        the Gaussian negative log-likelihood where ``forward`` returns a ``Gaussian``, and the
        pinball loss of ``Quantiles``.

        Args:
            batch: what the dataloader gives, unchanged; a CombinedLoader's dict or list as well.

        Returns:
            A scalar tensor, or a dict with it as ``"loss"``; its other numbers are logged as well
            (with several processes, the same names on each). ``None`` skips the batch.

        Raises:
            ModelError: there is no task to choose by, or ``forward`` returns probabilities.
            DataError: the batch holds no target, or one of another shape than the prediction.
        """
        if self.task is None:
            raise ModelError(
                f"{type(self).__name__} must have a task or a loss(batch) of its own, got neither; "
                f"pass task= one of {', '.join(TASKS)}."
            )
        inputs, target = self.inputs_and_target(batch)
        if target is None:
            raise DataError(
                "the default loss needs batches with a target, got a "
                f"{type(batch).__name__} without one; "
                "give batches (inputs, target), or define loss(batch)."
            )
        output = select_output(self._forward(inputs))
        self._check_logits_once(output)
        return TASKS[self.task].loss(output, target)

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch into what ``forward`` takes and the target, ``None`` if there is none.

        ``(inputs, target)`` pairs, single tensors and dicts are understood; the whole rule is that
        of :func:`stablelightning.callbacks.batches.inputs_and_target`.

        Raises:
            DataError: the batch fits none of these; define this method.
        """
        # The rule asks the module for this very method first: hand it the forward alone.
        stand_in: Any = type(type(self).__name__, (), {})()
        stand_in.forward = self.forward
        return inputs_and_target(stand_in, batch)

    def task_metrics(self, output: Tensor | Distribution) -> Mapping[str, Metric]:
        """Fresh metrics by name, logged as ``val/<name>`` and ``test/<name>``.

        Args:
            output: a first prediction, to read the number of classes from.
        """
        return TASKS[self.task].metrics(output) if self.task is not None else {}

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the scheduler from the constructor's settings, and check them."""
        return configured(self, self._stable_settings)

    # ---- the steps ---------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss, and log it as ``train/loss``."""
        parts = self._loss_parts(batch)
        if parts is None:
            return None
        rows = rows_in(batch)
        for name, value in parts.items():
            self._log(f"train/{name}", value, on_step=True, on_epoch=False, prog_bar=name == "loss")
            self._log(f"train/{name}_epoch", value, batch_size=rows, **_OF_THE_EPOCH)
        return parts["loss"]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Log the loss and the metrics of the task as ``val/...``."""
        return self._evaluate("val", batch, (batch_idx, dataloader_idx))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Log the loss and the metrics of the task as ``test/...``."""
        return self._evaluate("test", batch, (batch_idx, dataloader_idx))

    @_eager
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Predict with Monte Carlo dropout; a target in the batch is left aside.

        Returns:
            A :class:`~stablelightning.model.prediction.Prediction`; what ``forward`` returns if
            ``samples`` is 0.

        Raises:
            NothingRandomError: nothing in the model is random, so its uncertainty cannot be told.
        """
        inputs, _ = self.inputs_and_target(batch)
        samples = self._stable_settings.samples
        if samples == 0:
            return self._forward(inputs)
        call: Callable[..., Any] | None = None
        if self.task == "multilabel" and self._default_loss:
            call = self._label_probabilities
        try:
            return mc_dropout(self, inputs, samples=samples, task=self.task or "auto", call=call)
        except NothingRandomError as error:
            raise NothingRandomError(
                f"{error} For predictions without uncertainty, pass samples=0."
            ) from error

    # ---- inside ------------------------------------------------------------------------------

    @property
    def _default_loss(self) -> bool:
        return type(self).loss is StableMixin.loss

    def _forward(self, inputs: Any) -> Any:
        args, kwargs = spread(inputs)
        return self(*args, **kwargs)

    def _label_probabilities(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the default loss takes as logits are logits, even where all lie in [0, 1]."""
        output = select_output(self(*args, **kwargs))
        assert isinstance(output, Tensor)
        return output.sigmoid()

    def _check_logits_once(self, output: Tensor | Distribution) -> None:
        """Softmax in ``forward`` and again in the loss trains, slowly, and nothing complains."""
        if self._stable_checked_logits or self.task != "classification":
            return
        self._stable_checked_logits = True
        if isinstance(output, Tensor) and output.ndim > 1 and is_probabilities(output.detach()):
            raise ModelError(
                f"{type(self).__name__}.forward must return logits for the default loss, got "
                "probabilities; leave out the softmax, or define loss(batch)."
            )

    def _loss_parts(self, batch: Any) -> dict[str, Tensor] | None:
        """The loss and what is logged beside it; ``None`` where the user skips the batch."""
        value = self.loss(batch)
        if value is None:
            return None
        parts = dict(value) if isinstance(value, Mapping) else {"loss": value}
        loss = parts.pop("loss", None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(value).__name__
            raise ModelError(
                f"{type(self).__name__}.loss must return a scalar tensor, or a dict with one as "
                f"'loss', got {got}; take the mean over the rows."
            )
        return {"loss": loss, **_numbers(parts)}

    @_eager
    def _evaluate(self, stage: str, batch: Any, place: tuple[int, int]) -> Tensor | None:
        batch, rows = without_repeats(self._trainer, batch, *place)
        self._stable_counts = rows > 0
        with self._outputs_of_forward() as outputs:
            parts = self._loss_parts(batch)
        if parts is None:
            return None
        # Lightning takes the mean weight of the processes in whole numbers: leave it no remainder.
        weight = rows * (self._trainer.world_size if self._trainer is not None else 1)
        for name, value in parts.items():
            bar = stage == "val" and name == "loss"
            self._log(f"{stage}/{name}", value, batch_size=weight, prog_bar=bar, **_OF_THE_EPOCH)
        if self.task is not None:
            inputs, target = self.inputs_and_target(batch)
            if target is not None:
                # The user's loss has run forward already, unless it calls the layers itself.
                output = outputs[0] if len(outputs) == 1 else self._forward(inputs)
                self._update_metrics(f"{stage}_{place[1]}", select_output(output), target)
        return parts["loss"]

    def _update_metrics(self, key: str, output: Tensor | Distribution, target: Tensor) -> None:
        assert self.task is not None
        compared = TASKS[self.task].compared(output, target, logits=self._default_loss)
        self._log_metrics(key, output, compared)

    def _log_metrics(
        self, key: str, output: Tensor | Distribution, compared: tuple[Tensor, Tensor]
    ) -> None:
        """Update and log the metrics of one dataloader, ``<stage>_<index>``."""
        for name, metric in self._metrics(key, output).items():
            assert isinstance(metric, Metric)
            if self._stable_counts:
                metric.update(*compared)
            attribute = f"_stable_metrics.{key}.{name}"
            self._log(
                f"{key.partition('_')[0]}/{name}",
                metric,
                on_step=False,
                on_epoch=True,
                metric_attribute=attribute,
                batch_size=max(compared[1].shape[:1], default=1),
            )

    def _metrics(self, key: str, output: Tensor | Distribution) -> nn.ModuleDict:
        """Metrics of one dataloader: made at its first batch, which tells the number of classes."""
        if "_stable_metrics" not in self._modules:
            self._stable_metrics = nn.ModuleDict()
        if key not in self._stable_metrics:
            # Lightning evaluates in inference mode; state made there could not be updated outside.
            with torch.inference_mode(False):
                made = nn.ModuleDict(dict(self.task_metrics(output)))
            self._stable_metrics[key] = made.to(self.device)
        metrics = self._stable_metrics[key]
        assert isinstance(metrics, nn.ModuleDict)
        return metrics

    @contextmanager
    def _outputs_of_forward(self) -> Iterator[list[Any]]:
        outputs: list[Any] = []
        handle = self.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            yield outputs
        finally:
            handle.remove()

    @_eager
    def _log(self, name: str, value: Any, **options: Any) -> None:
        """Log, but be quiet where there is no Trainer, or one that must not log (barebones)."""
        trainer = self._trainer
        if trainer is not None and not trainer.barebones:
            self.log(name, value, **options)


def _numbers(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """What can be logged beside the loss, as floats: Lightning takes no mean of whole numbers."""
    found = {n: torch.as_tensor(p) for n, p in parts.items() if isinstance(p, Tensor | Real)}
    return {name: part.float() for name, part in found.items() if part.numel() == 1}


_SETTING_NAMES = tuple(
    name
    for name, parameter in inspect.signature(StableMixin.__init__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)
