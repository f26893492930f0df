"""Predicting the batches of one dataloader, plainly and by sampling."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.callbacks.records import Observation
from stablelightning.callbacks.scoring import task_and_class_dim
from stablelightning.callbacks.steps import Calls, Step
from stablelightning.checks import check_whole
from stablelightning.errors import NothingRandomError, RecipeError, StableLightningWarning
from stablelightning.functional.uncertainty import is_label_probabilities
from stablelightning.model.masks import Masks
from stablelightning.model.prediction import Prediction, Task
from stablelightning.model.sample import Engine, mc_dropout
from stablelightning.model.summarize import Summary, select_output
from stablelightning.nn.heads import Gaussian


class BatchPredictor:
    """Predicts batches; what the first one teaches (the call, the task) holds for all.

    Args:
        pl_module: the module.
        step: its own ``predict_step``, unwrapped.
        task: a task, or ``"auto"``.
        samples: for :func:`~stablelightning.mc_dropout`, as are ``engine``, ``tolerance`` and
            ``masks``; with 0 the plain pass stands in for the samples, or a
            :class:`~stablelightning.Prediction` that the module's own ``predict_step`` returns.

    Attributes:
        plainly: whether nothing is sampled here.
        or_plainly: whether the plain pass may stand in where nothing in the model is random.
    """

    def __init__(
        self,
        pl_module: L.LightningModule,
        step: Step,
        *,
        task: str,
        samples: int,
        engine: Engine,
        tolerance: float | None,
        masks: Masks = "independent",
    ) -> None:
        self.class_dim = 1
        self._module = pl_module
        self._calls = Calls(pl_module, step)
        self._wanted = task
        self._task: Task | None = None
        self._keep_samples = False
        self.plainly = samples == 0
        self.or_plainly = False
        self._draw = partial(
            mc_dropout, samples=samples, engine=engine, tolerance=tolerance, masks=masks
        )
        self._label_logits = False
        self._function: Callable[..., Any] = pl_module

    @property
    def needs_inputs(self) -> bool:
        """Whether there is nothing but ``forward`` to call."""
        return not self._calls.own_step

    @property
    def knows_task(self) -> bool:
        """Whether a batch has been predicted."""
        return self._task is not None

    def observation(
        self, inputs: Any, target: Any, arguments: tuple[Any, ...], *, seed: int
    ) -> Observation:
        """Both predictions of a batch, beside its target if that is a tensor.

        Raises:
            ModelError: no call gives a prediction that can be averaged.
            NothingRandomError: no random number was drawn.
        """
        target = target if isinstance(target, Tensor) else None
        plain = self.plain(inputs, target, arguments, seed=seed)
        sampled = plain if self.plainly else self.sampled(inputs, arguments, seed=seed)
        return Observation(sampled, plain, target, self.class_dim, _rows_in(inputs, plain))

    def plain(
        self, inputs: Any, target: Tensor | None, arguments: tuple[Any, ...], *, seed: int
    ) -> Prediction:
        """The prediction of one pass of the module as it stands.

        Raises:
            ModelError: no call gives a prediction that can be averaged.
        """
        given = self._calls.given(arguments, seed=seed) if self.plainly else None
        if given is not None:
            self._task = given.task
            return given
        output = self._calls.plain(inputs, arguments, seed=seed)
        if self._task is None:
            self._task, self.class_dim = task_and_class_dim(
                self._wanted, self._module, output, target
            )
            # The mixture likelihood needs every sample; for pixels that would be too many.
            self._keep_samples = isinstance(output, Gaussian) and output.mean.ndim <= 2
            if self._task == "multilabel" and isinstance(output, Tensor):
                self._label_logits = _takes_logits(self._module) or not is_label_probabilities(
                    output
                )
        if self._label_logits and isinstance(output, Tensor):
            output = output.float().sigmoid()
        summary = Summary(self._task, class_dim=self.class_dim)
        summary.update_(tree_map(lambda x: x.unsqueeze(0), output))
        return summary.prediction(engine="plain")

    def sampled(self, inputs: Any, arguments: tuple[Any, ...], *, seed: int) -> Prediction:
        """The Monte Carlo prediction of the same batch; :meth:`plain` comes first.

        Raises:
            NothingRandomError: no random number was drawn.
        """
        assert self._task is not None
        if self.plainly:
            return self.plain(inputs, None, arguments, seed=seed)
        try:
            return self._sampled(inputs, arguments, seed=seed)
        except NothingRandomError as error:
            if not self.or_plainly:
                raise
            self.plainly = True
            rank_zero_warn(
                f"{error} Its plain predictions are calibrated in their place.",
                category=StableLightningWarning,
            )
            return self.plain(inputs, None, arguments, seed=seed)

    def _sampled(self, inputs: Any, arguments: tuple[Any, ...], *, seed: int) -> Prediction:
        assert self._task is not None
        call = self._calls.chosen(inputs, arguments)
        self._function = call.function or self._module
        return self._draw(
            self._module,
            call.inputs,
            call=self._label_probabilities if self._label_logits else call.function,
            seed=seed,
            task=self._task,
            class_dim=self.class_dim,
            keep_samples=self._keep_samples,
        )

    def _label_probabilities(self, *arguments: Any, **named: Any) -> Any:
        """Logits of one row may all lie in [0, 1]; the first batch has told what they are."""
        output = select_output(self._function(*arguments, **named))
        return output.float().sigmoid() if isinstance(output, Tensor) else output


def _takes_logits(pl_module: L.LightningModule) -> bool:
    """Whether it is a StableMixin with its default loss, for which outputs are logits."""
    return getattr(pl_module, "_default_loss", None) is True


def gives_features(pl_module: L.LightningModule) -> bool:
    """Whether a module says that its output is no prediction, so that nothing is uncertain in it.

    A module does so by an attribute ``gives_features``, as those that pretrain a network have it.

    Example:
        >>> gives_features(L.LightningModule())
        False
    """
    return bool(getattr(pl_module, "gives_features", False))


def target_scale(trainer: L.Trainer) -> tuple[Any, Any] | None:
    """Mean and standard deviation by which the data module standardised the target, if it did."""
    scale: tuple[Any, Any] | None = getattr(
        getattr(trainer, "datamodule", None), "target_scale", None
    )
    return scale


def _rows_in(inputs: Any, prediction: Prediction) -> int:
    """Number of dataset rows in a batch: the first axis of its first tensor.

    The prediction says it instead where the inputs hold no tensor, or tensors that do not divide it
    (a graph with its nodes).
    """
    predicted = len(prediction.mean)
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return len(leaf) if len(leaf) and predicted % len(leaf) == 0 else predicted
    return predicted


def check_sampling(
    samples: int, seed: int, engine: str, task: str, tolerance: float | None
) -> None:
    """Refuse settings of sampling that are out of their range.

    Raises:
        RecipeError: one is.
    """
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        check_whole(name, value, least=least)
    for name, word, known in (
        ("engine", engine, get_args(Engine)),
        ("task", task, ("auto", *get_args(Task))),
    ):
        if word not in known:
            raise RecipeError(f"{name} must be one of {', '.join(known)}, got {word!r}.")
    if tolerance is not None and not tolerance > 0:
        raise RecipeError(
            f"tolerance must be > 0, got {tolerance}; leave it out to draw every sample."
        )
