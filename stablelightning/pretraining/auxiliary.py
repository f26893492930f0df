"""Auxiliary tasks: labels that cost nothing, such as how an image was turned."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from stablelightning.checks import check_whole
from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.rotate import QUARTERS, check_square_images, rotate_all_ways
from stablelightning.model.prediction import Task
from stablelightning.model.task import TASKS
from stablelightning.pretraining.base import Pretraining
from stablelightning.report.pretraining import turned_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Makes of a batch what the network reads, and the labels.
LabelsCallable = Callable[[Any], tuple[Any, Tensor]]


class RotationPrediction(Pretraining):
    """Pretrain a network of images by telling by how many quarter turns each was turned.

    Every image of a batch is shown four times, turned by 0, 90, 180 and 270 degrees; a linear layer
    on the features says which. To tell, a network must know what things look like, and where their
    parts are. Not for data without an up and a down, such as cells or views from above.

    Logged beside the loss are ``val/accuracy`` and ``test/accuracy``, the share of the turns that
    are told; 0.25 is chance.

    Args:
        network: as in :class:`~stablelightning.pretraining.Pretraining`: any that takes square
            images ``(N, C, S, S)``. A step costs as much as one on four times the batch.
        **kwargs: ``keep_head`` of :class:`~stablelightning.pretraining.Pretraining`; ``optimizer``
            and the other settings of :class:`~stablelightning.mixin.StableMixin`.

    Raises:
        ModelError: ``network`` is not a plain module with weights.
        DataError: from ``fit``: the inputs are rows, sequences or images that are not square.

    Source:
        Gidaris, Singh, Komodakis 2018, arXiv:1803.07728.

    Example:
        >>> import torch
        >>> from stablelightning.nn import ConvNet
        >>> module = RotationPrediction(ConvNet(1, 10, channels=[8]))
        >>> module.loss((torch.randn(4, 1, 8, 8), torch.zeros(4))).shape
        torch.Size([])
        >>> module.turns
        Linear(in_features=8, out_features=4, bias=True)
    """

    objective = "rotation"

    def build(self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...]) -> None:
        """Make the layer that tells the turns."""
        self.turns = nn.Linear(_width(feature_shape), QUARTERS)

    def check(self, inputs: Tensor) -> None:
        """Refuse what cannot be turned.

        Raises:
            DataError: these are no square images.
        """
        check_square_images(inputs, "rotation")

    def loss(self, batch: Any) -> Tensor:
        """Cross entropy of the four turns of every image, in nats."""
        turned, quarters = rotate_all_ways(self.inputs(batch))
        logits = self.turns(self.vectors(turned))
        self.compare(logits, quarters)
        return F.cross_entropy(logits, quarters)

    def task_metrics(self, output: Any) -> Mapping[str, Metric]:
        """The share of the turns that are told."""
        return {"accuracy": MulticlassAccuracy(QUARTERS, average="micro", validate_args=False)}

    def picture(self, batch: Any) -> "Figure | None":
        """Images in their four turns, with what the network says of each."""
        images = self.inputs(batch)
        turned, _ = rotate_all_ways(images)
        return turned_images(turned, self.turns(self.vectors(turned)))


class AuxiliaryTask(Pretraining):
    """Pretrain a network on labels of your own that are not those it is meant for.

    What is known of every example anyway: the camera, the hour, the order of two frames, a reading
    of a sensor. The labels stand in the batch under a key, or a function makes them.

    Logged beside the loss, for validation and test, are the metrics of the task: ``accuracy`` and
    ``f1``, or ``rmse`` and ``mae``.

    In a recipe::

        model:
          class_path: stablelightning.pretraining.AuxiliaryTask
          init_args:
            num_labels: 24
            labels: my_file.hour_of_day      # def hour_of_day(batch): return batch[0], batch[2]

    Args:
        network: as in :class:`~stablelightning.pretraining.Pretraining`.
        num_labels: classes, labels, or numbers to predict; >= 1, for a classification >= 2.
        task: ``"classification"`` (class indices ``(N,)``), ``"multilabel"`` (0 or 1, ``(N, L)``)
            or ``"regression"`` (``(N,)`` or ``(N, D)``).
        labels: makes of a batch what the network reads and the labels. It may draw at random, and
            may give more rows than the batch has.
        key: where in the batch the labels stand, a position or a key; the inputs are then found as
            ever. Exactly one of ``labels`` and ``key`` is given.
        **kwargs: ``keep_head`` of :class:`~stablelightning.pretraining.Pretraining`; ``optimizer``
            and the other settings of :class:`~stablelightning.mixin.StableMixin`.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: ``network`` is not a plain module with weights.
        DataError: from ``fit``: a batch has no such entry, or labels of another shape or range.

    Source:
        Doersch, Zisserman 2017, arXiv:1708.07860 (pretraining on tasks whose labels are free).

    Example:
        >>> import torch
        >>> from stablelightning.nn import MLP
        >>> def brighter_half(batch):
        ...     left, right = batch[0].chunk(2, dim=1)
        ...     return batch[0], (left.mean(1) > right.mean(1)).long()
        >>> module = AuxiliaryTask(MLP(16, 10), num_labels=2, labels=brighter_half)
        >>> module.loss((torch.randn(5, 16), torch.zeros(5))).shape
        torch.Size([])
    """

    objective = "auxiliary"

    def __init__(
        self,
        network: nn.Module,
        *,
        num_labels: int,
        task: Task = "classification",
        labels: LabelsCallable | None = None,
        key: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        if task not in TASKS:
            raise RecipeError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        check_whole("num_labels", num_labels, least=2 if task == "classification" else 1)
        if (labels is None) == (key is None):
            raise RecipeError(
                "an auxiliary task needs labels (a function of the batch) or key (where they stand "
                f"in it), exactly one, got {'neither' if labels is None else 'both'}."
            )
        super().__init__(network, **kwargs)
        self.num_labels = num_labels
        self.auxiliary_task: Task = task
        self.labels = labels
        self.key = key

    def build(self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...]) -> None:
        """Make the layer that predicts the labels."""
        self.readout = nn.Linear(_width(feature_shape), self.num_labels)

    def inputs(self, batch: Any) -> Tensor:
        """What the network reads of a batch."""
        return self.inputs_and_labels(batch)[0]

    def inputs_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What the network reads of a batch, and the labels.

        Raises:
            DataError: there are no such labels.
        """
        if self.labels is None:
            inputs, labels = super().inputs(batch), self._at_key(batch)
        else:
            made = self.labels(batch)
            if not isinstance(made, tuple | list) or len(made) != 2:
                raise DataError(
                    f"labels must return a pair (inputs, labels), got {type(made).__name__}; mend "
                    "the function."
                )
            inputs, labels = super().inputs(made[0]), made[1]
        if not isinstance(labels, Tensor) or labels.shape[:1] != inputs.shape[:1]:
            found = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise DataError(
                f"labels must be a tensor with a row for each of the {len(inputs)} inputs, got "
                f"{found}; check labels, or key."
            )
        return inputs, labels

    def loss(self, batch: Any) -> Tensor:
        """The usual loss of the task: cross entropy (of classes or labels), or squared error."""
        inputs, labels = self.inputs_and_labels(batch)
        rules = TASKS[self.auxiliary_task]
        output = self.readout(self.vectors(inputs))
        self._check_range(labels)
        self.compare(*rules.compared(output, labels, logits=True))
        return rules.loss(output, labels)

    def task_metrics(self, output: Any) -> Mapping[str, Metric]:
        """Those of the task."""
        return TASKS[self.auxiliary_task].metrics(output)

    def _at_key(self, batch: Any) -> Any:
        try:
            return batch[self.key]
        except (KeyError, IndexError, TypeError) as error:
            held = f"a {type(batch).__name__}"
            if isinstance(batch, Mapping):
                held = f"the keys {', '.join(map(str, batch))}"
            elif isinstance(batch, tuple | list):
                held = f"{len(batch)} entries"
            raise DataError(
                f"key must be that of the labels in a batch, got {self.key!r} and {held}; "
                "correct key, or give a function as labels."
            ) from error

    def _check_range(self, labels: Tensor) -> None:
        """Outside of training, where nobody waits for the device: a loss would only say CUDA."""
        if self.training and labels.device.type != "cpu":
            return
        if self.auxiliary_task == "classification" and labels.numel():
            most = int(labels.max())
            if most >= self.num_labels:
                raise DataError(
                    f"labels must be class numbers below num_labels, {self.num_labels}, got "
                    f"{most}; raise num_labels, or number the classes from 0."
                )


def _width(feature_shape: tuple[int, ...]) -> int:
    """Numbers of a pooled feature: the last of tokens ``(T, F)``, the first of maps."""
    return feature_shape[-1] if len(feature_shape) < 3 else feature_shape[0]
