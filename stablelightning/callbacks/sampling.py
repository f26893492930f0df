"""Predicting the batches of one dataloader, plainly and by sampling."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.callbacks.scoring import task_and_class_dim
from stablelightning.callbacks.steps import Calls, Step
from stablelightning.model.prediction import Prediction, Task
from stablelightning.model.summarize import Summary
from stablelightning.nn.heads import Gaussian


class BatchPredictor:
    """Predicts batches; what the first one teaches (the call, the task) holds for all.

    Args:
        pl_module: the module.
        step: its own ``predict_step``, unwrapped.
        task: a task, or ``"auto"``.
        draw: :func:`~stablelightning.mc_dropout` with the number of samples and so on filled in.
    """

    def __init__(
        self,
        pl_module: L.LightningModule,
        step: Step,
        *,
        task: str,
        draw: Callable[..., Prediction],
    ) -> None:
        self.class_dim = 1
        self._module = pl_module
        self._calls = Calls(pl_module, step)
        self._wanted = task
        self._task: Task | None = None
        self._keep_samples = False
        self._draw = draw

    @property
    def needs_inputs(self) -> bool:
        """Whether there is nothing but ``forward`` to call."""
        return not self._calls.own_step

    @property
    def knows_task(self) -> bool:
        """Whether a batch has been predicted."""
        return self._task is not None

    def plain(
        self, inputs: Any, target: Tensor | None, arguments: tuple[Any, ...], *, seed: int
    ) -> Prediction:
        """The prediction of one pass of the module as it stands.

        Raises:
            ModelError: no call gives a prediction that can be averaged.
        """
        output = self._calls.plain(inputs, arguments, seed=seed)
        if self._task is None:
            self._task, self.class_dim = task_and_class_dim(
                self._wanted, self._module, output, target
            )
            # The mixture likelihood needs every sample; for pixels that would be too many.
            self._keep_samples = isinstance(output, Gaussian) and output.mean.ndim <= 2
        summary = Summary(self._task, class_dim=self.class_dim)
        summary.update_(tree_map(lambda x: x.unsqueeze(0), output))
        return summary.prediction(engine="plain")

    def sampled(self, inputs: Any, arguments: tuple[Any, ...], *, seed: int) -> Prediction:
        """The Monte Carlo prediction of the same batch; :meth:`plain` comes first.

        Raises:
            NothingRandomError: no random number was drawn.
        """
        call = self._calls.chosen(inputs, arguments)
        return self._draw(
            self._module,
            call.inputs,
            call=call.function,
            seed=seed,
            task=self._task,
            class_dim=self.class_dim,
            keep_samples=self._keep_samples,
        )


def rows_in(inputs: Any, prediction: Prediction) -> int:
    """Number of dataset rows in a batch: the first axis of its first tensor.

    The prediction says it instead where the inputs hold no tensor, or tensors that do not divide it
    (a graph with its nodes).
    """
    predicted = len(prediction.mean)
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return len(leaf) if len(leaf) and predicted % len(leaf) == 0 else predicted
    return predicted
