"""StableEnsemble: several members of one network, trained side by side as one LightningModule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.errors import ModelError, RecipeError, StableLightningError
from stablelightning.functional.mixture import (
    mixture_label_logits,
    mixture_logits,
    mixture_moments,
)
from stablelightning.functional.uncertainty import is_probabilities
from stablelightning.model.ensemble import draw_networks
from stablelightning.model.inputs import spread
from stablelightning.model.members import Members
from stablelightning.model.prediction import Task
from stablelightning.model.side_by_side import has_hooks
from stablelightning.model.stacked import StackedNetworks, StackEngine
from stablelightning.model.summarize import select_output
from stablelightning.model.task import TASKS
from stablelightning.module import StableModule
from stablelightning.nn.heads import Gaussian

__all__ = ["StableEnsemble"]


#: What takes a parameter for the matrix of one network, by the names of classes, and what it does.
_ONE_NETWORK = {
    "ClipGradientAdaptive": "which would take members for units",
    "NormalizeGradients": "which would measure all members together",
    "LimitWeightNorm": "which would take members for units",
    "Muon": "which would take members for the rows of a matrix",
    "LBFGS": "whose one line search would serve all members",
}


class StableEnsemble(StableModule, Members):
    """Members of one network, each with weights of its own, in one training.

    In a recipe it takes the place of :class:`~stablelightning.module.StableModule`, whose settings
    it shares::

        model:
          class_path: stablelightning.ensemble.StableEnsemble
          init_args:
            members: 5

    All members see the same batches; they differ by the weights that they start from and by the
    masks of their dropout. Their parameters are stacked, and a step is one pass of all where the
    network allows it (:class:`~stablelightning.model.stacked.StackedNetworks`), one after the other
    where it does not. What is minimised is the sum of the members' losses, so that each has the
    gradients that it would have alone; ``train/loss`` is their mean.

    Called, it gives the output of the mixture (log of the mean probabilities, the mean and the
    variance of a ``Gaussian``), which is also what validation and test see: ``val/loss`` is that of
    the ensemble, not of a member. Its :class:`~stablelightning.Prediction` tells members apart:
    ``epistemic`` is what they, and the samples of their dropout if they have any, disagree about.

    Settings are shared, the learning rate too. What mixes the elements of a parameter sees members
    side by side: a joint gradient norm is that of all of them.

    Args:
        network: makes a network: a class, a function or a ``functools.partial``; in a recipe its
            ``class_path`` and ``init_args``. It is called once for each member, each time with a
            seed of its own, so that what it loads is in each, and what it draws differs. A ready
            network does as well, of which copies are drawn anew
            (:func:`~stablelightning.model.ensemble.draw_networks`).
        task: as for :class:`~stablelightning.module.StableModule`.
        members: M >= 1.
        engine: ``"auto"``, ``"vmap"`` or ``"loop"``; how members are computed, never what.
        **kwargs: as for :class:`~stablelightning.module.StableModule`. ``samples`` are those of
            each member.

    Raises:
        ModelError: ``network`` makes no module, or networks of different shapes; when training
            begins: there is no task.
        RecipeError: a setting is out of its range.

    Source:
        Lakshminarayanan et al. 2017, arXiv:1612.01474.

    Example:
        >>> import torch
        >>> from stablelightning.nn import MLP
        >>> make = partial(MLP, 4, 3, hidden=[8], dropout=0.0)
        >>> module = StableEnsemble(make, task="classification", members=5)
        >>> prediction = module.predict_step(torch.randn(6, 4), 0)
        >>> prediction.mean.shape, prediction.engine
        (torch.Size([6, 3]), '5 members')
    """

    network: StackedNetworks
    _by_member = False  #: whether a training step is under way

    def __init__(
        self,
        network: Callable[[], nn.Module],
        task: Task | None = None,
        *,
        members: int = 5,
        engine: StackEngine = "auto",
        **kwargs: Any,
    ) -> None:
        networks = StackedNetworks(draw_networks(network, members), engine=engine)
        super().__init__(networks, task, **kwargs)  # type: ignore[arg-type]

    # ---- members -----------------------------------------------------------------------------

    @property
    def members(self) -> int:  # type: ignore[override]
        """How many there are."""
        return self.network.members

    @property
    def chosen(self) -> int | None:  # type: ignore[override]
        """The member that the module is just now; ``None`` for all."""
        return self.network.chosen

    @contextmanager
    def as_member(self, number: int) -> Iterator[nn.Module]:
        """Inside, be one member: an ordinary module with ordinary parameters.

        Example:
            >>> import torch
            >>> module = StableEnsemble(partial(nn.Linear, 4, 3), task="classification", members=2)
            >>> with module.as_member(1):
            ...     module(torch.randn(6, 4)).shape, module.network.networks.weight.shape
            (torch.Size([6, 3]), torch.Size([3, 4]))
        """
        with self.network.as_member(number):
            yield self

    def member_outputs(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of all members for the same inputs, ``(members, ...)``."""
        return self.network(*args, **kwargs)

    # ---- as one ------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the mixture; of one member where the module is one."""
        outputs = self.network(*args, **kwargs)
        return outputs if self.network.is_member else self._combined(outputs)

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        """Split a batch by the rule for a member's own ``forward``."""
        return inputs_and_target(self.network.networks, batch)  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        """Refuse what has nothing to minimise, such as the settings of a pretraining.

        Raises:
            ModelError: there is no task, and no ``loss(batch)`` of a subclass.
        """
        if self.task is None and self._default_loss:
            raise ModelError(
                "an ensemble needs a task to train its members for, got none; set task "
                f"(--model.task on the line) to one of {', '.join(TASKS)}."
            )

    def on_train_start(self) -> None:
        """Refuse what takes a parameter for the matrix of one network, before the first step.

        Raises:
            RecipeError: an optimizer or a callback would mix members, or take them for units.
        """
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for part in (*callbacks, *self.trainer.optimizers):
            for kind in type(part).__mro__:
                if kind.__name__ in _ONE_NETWORK:
                    raise RecipeError(
                        f"an ensemble needs what treats its members alike, got {kind.__name__}, "
                        f"{_ONE_NETWORK[kind.__name__]}; leave it out, or train the networks one "
                        "by one and predict from their checkpoints."
                    )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the sum of the members' losses, and log their mean as ``train/loss``."""
        self._by_member = True
        try:
            loss = super().training_step(batch, batch_idx)
        finally:
            self._by_member = False
        if loss is None or self.network.is_member:
            return loss
        return loss * self.members

    def _loss_parts(self, batch: Any) -> dict[str, Tensor] | None:
        """In training the mean of the members' losses, elsewhere the loss of the mixture."""
        if not self._by_member or self.network.is_member:
            return super()._loss_parts(batch)
        loss = self._loss_of_all(batch)
        if loss is not None:
            return {"loss": loss}
        parts = self.network.map(partial(self._loss_parts, batch))
        return None if parts is None else {name: values.mean() for name, values in parts.items()}

    def _loss_of_all(self, batch: Any) -> Tensor | None:
        """The loss with the rows of all members as one batch; ``None``: ask each for its own.

        It is a mean over rows, and each member has equally many: the mean over all of them is that
        of the members' losses, without the price of a loss under vmap.
        """
        rewritten = any(
            getattr(type(self), name) is not getattr(StableEnsemble, name)
            for name in ("loss", "forward", "inputs_and_target")
        )
        rewritten = rewritten or not vars(self).keys().isdisjoint(("loss", "inputs_and_target"))
        if self.task is None or rewritten or has_hooks(self):
            return None
        inputs, target = self.inputs_and_target(batch)
        if not isinstance(target, Tensor) or not target.ndim:
            return None
        args, kwargs = spread(inputs)
        output = self.network.selected(select_output, *args, **kwargs)
        loss = TASKS[self.task].loss
        parts = [output] if isinstance(output, Tensor) else list(output)
        if all(part.shape[:2] == (self.members, len(target)) for part in parts):
            repeated = target.expand(self.members, *target.shape).flatten(0, 1)
            with suppress(StableLightningError):  # told below, in the shapes of one member
                return loss(tree_map(lambda part: part.flatten(0, 1), output), repeated)
        each = [tree_map(itemgetter(number), output) for number in range(self.members)]
        return torch.stack([loss(member, target) for member in each]).mean()

    def _check_logits_once(self, output: Any) -> None:
        # Under vmap there are no values to look at; validation looks at the mixture.
        if not self.network.is_member:
            super()._check_logits_once(output)

    def _combined(self, outputs: Any) -> Any:
        output = select_output(outputs)
        if isinstance(output, Gaussian):
            return Gaussian(*mixture_moments(output.mean, output.variance))
        if not isinstance(output, Tensor):
            return tree_map(lambda each: each.mean(0), output)
        if self.task == "multilabel" and self._default_loss:
            return mixture_label_logits(output)
        if self.task == "classification" and not is_probabilities(output.detach(), 2):
            return mixture_logits(output)
        return output.mean(0)
