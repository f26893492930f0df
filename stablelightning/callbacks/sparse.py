"""Sparse models: pruned gradually by magnitude, or shrunk by L1 and then cut."""

import math

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from stablelightning.callbacks.masks import PruneWeights
from stablelightning.errors import RecipeError
from stablelightning.functional.regularize import soft_threshold_
from stablelightning.functional.sparsity import cubic_sparsity
from stablelightning.model.prune import layer_sparsity, prunable_weights
from stablelightning.model.sparse_file import sizes_on_disk
from stablelightning.report.section import Section
from stablelightning.report.sparse import sparsity_section

#: Changes of the masks in one schedule, unless a number of steps between them is given.
_CHANGES = 100


class PruneGradually(PruneWeights):
    """Prune the smallest weights little by little while training goes on, then train what is left.

    From ``start`` to ``end`` the share of zeros grows by the cubic schedule: fast while there are
    many weights, slowly when few are left. What was pruned stays pruned. After ``end`` the masks
    are fixed, and the rest of the training makes up for what was lost; leave it a third or so, and
    a learning rate that is not yet near zero.

    Pruned are the weights of linear, convolutional, recurrent and attention layers, the head
    included; never biases, norms and embeddings
    (:func:`~stablelightning.model.prune.prunable_weights`). The sparsity is exact. Weights stay
    plain parameters, so that checkpoints have their usual keys; a resumed run keeps its masks to
    the bit. With ``start`` equal to ``end`` all is pruned at once, and with 0 before the first
    step: so a model that is sparse already stays as it is while it trains on.

    Logged: ``sparse/sparsity``; in the end the W&B table ``sparse/layers``, and
    ``sparse/<score>_before`` and ``_after``: of the last validation before anything was pruned, and
    of the last one.

    Args:
        sparsity: share of the prunable weights that is zero in the end, in (0, 1).
        start: where pruning begins: a float is a share of the training, a whole number epochs.
        end: where the whole sparsity is reached, in the same way; not before ``start``.
        every_n_steps: optimizer steps between changes of the masks, >= 1; ``None`` makes a hundred
            of them.
        per_layer: prune every weight tensor to ``sparsity``; ``False`` compares all tensors
            together, each weight by its share in its own, so that layers keep as much as they need.
        exclude: dotted names of modules in which nothing is pruned; ``None`` for none.

    Attributes:
        changes: ``step`` and ``sparsity`` of each change of the masks.
        validations: ``step``, ``sparsity`` and ``scores`` of each validation in this process.
        before, after: scores of the last validation before anything was pruned, and of the last
            one at the whole sparsity.
        layers: exact sparsity of each layer when training ended, as
            :class:`~stablelightning.model.prune.LayerSparsity`.

    Raises:
        RecipeError: a setting is out of its range; the schedule is longer than the training, or the
            training has no known length; the strategy shards the model.
        ModelError: the model has nothing to prune.

    Source:
        Zhu, Gupta 2017, arXiv:1710.01878; Han, Pool, Tran, Dally 2015, arXiv:1506.02626; Lee, Park,
        Mo, Ahn, Shin 2021, arXiv:2010.07611 (comparing layers).

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> prune = PruneGradually(0.75)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[prune],
        ... )
        >>> trainer.fit(BoringModel())
        >>> prune.layers
        [LayerSparsity(layer='layer', shape=(2, 32), weights=64, zeros=48)]
    """

    def __init__(
        self,
        sparsity: float = 0.9,
        *,
        start: int | float = 0.1,
        end: int | float = 0.6,
        every_n_steps: int | None = None,
        per_layer: bool = False,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(sparsity, per_layer=per_layer, exclude=exclude)
        _check_place("start", start)
        _check_place("end", end)
        if isinstance(start, int) == isinstance(end, int) and start > end:
            raise RecipeError(f"start must not be after end, got {start} and {end}; swap them.")
        whole = isinstance(every_n_steps, int) and not isinstance(every_n_steps, bool)
        if every_n_steps is not None and (not whole or every_n_steps < 1):
            raise RecipeError(
                f"every_n_steps must be a whole number >= 1, got {every_n_steps!r}; null makes "
                f"{_CHANGES} changes."
            )
        self.start = start
        self.end = end
        self.every_n_steps = every_n_steps
        self._span, self._every = (0, 0), 1

    def plan(self, trainer: L.Trainer) -> None:
        """Turn shares and epochs into steps."""
        begin, end = (
            step_at(place, trainer, type(self).__name__) for place in (self.start, self.end)
        )
        if begin > end:
            raise RecipeError(
                f"start must not be after end, got {self.start} (step {begin}) and {self.end} "
                f"(step {end}); give both as shares, or both as epochs."
            )
        self._span = begin, end
        self._every = self.every_n_steps or max((end - begin) // _CHANGES, 1)

    def asked(self, step: int) -> float | None:
        """The cubic schedule, at its steps; the whole sparsity from its end on."""
        begin, end = self._span
        if step < begin or (step < end and (step - begin) % self._every):
            return None
        return cubic_sparsity(step, begin=begin, end=end, final=self.sparsity)


class PruneByL1(PruneWeights):
    r"""Shrink weights by L1 while training, then cut the smallest, then train what is left.

    Until ``end`` every prunable weight moves towards zero by ``strength`` times its learning rate
    after each step (the proximal step of L1, decoupled from the gradient), so that weights which
    the loss does not need come to rest at zero. At ``end`` the smallest are pruned to the exact
    sparsity, and the rest trains on without the penalty, which had made it smaller than it should
    be.

    What is pruned, how masks are held, what is logged and resumed is as for
    :class:`PruneGradually`.

    Args:
        sparsity: share of the prunable weights that is zero in the end, in (0, 1).
        strength: the factor :math:`\lambda` > 0 of the penalty; 0.01 to 0.1 for Adam and its kin.
        end: where the penalty ends and weights are cut: a float is a share of the training, a whole
            number epochs.
        per_layer: prune every weight tensor to ``sparsity``, instead of all of them together.
        exclude: dotted names of modules in which nothing is pruned or shrunk; ``None`` for
            none.

    Attributes:
        changes, validations, before, after: as of :class:`PruneGradually`.
        layers: exact sparsity of each layer when training ended.

    Raises:
        RecipeError: a setting is out of its range; the training is shorter than ``end``, or has no
            known length; the strategy shards the model.
        ModelError: the model has nothing to prune.

    Source:
        Tibshirani 1996, JRSS B 58(1) (the penalty); Han, Pool, Tran, Dally 2015, arXiv:1506.02626
        (cut, then train on).

    Example:
        >>> PruneByL1(0.8, strength=0.02).strength
        0.02
    """

    def __init__(
        self,
        sparsity: float = 0.9,
        *,
        strength: float = 0.05,
        end: int | float = 0.5,
        per_layer: bool = False,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(sparsity, per_layer=per_layer, exclude=exclude)
        _check_place("end", end)
        if not isinstance(strength, int | float) or not 0 < strength < math.inf:
            raise RecipeError(
                f"strength must be a number > 0, got {strength!r}; to prune without a penalty, use "
                "PruneGradually."
            )
        self.strength = strength
        self.end = end
        self._cut = 0

    def plan(self, trainer: L.Trainer) -> None:
        """Turn a share or epochs into a step."""
        self._cut = step_at(self.end, trainer, type(self).__name__)

    def asked(self, step: int) -> float | None:
        """Everything at once, at the end."""
        return self.sparsity if step >= self._cut else None

    def shrink_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Take the proximal step of L1, until the weights are cut."""
        if not self.is_complete:
            soft_threshold_(weight, learning_rate * self.strength)


def sparsity_of_run(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """The section on sparsity of a run's report; ``None`` where nothing was pruned.

    Counts are of the model as it is, which after a test is the checkpoint that was tested.

    Args:
        trainer: after ``fit``.
        model: its module.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> sparsity_of_run(trainer, L.LightningModule()) is None
        True
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PruneWeights) and callback.changes:
            weights = prunable_weights(model, exclude=callback.exclude or ())
            return sparsity_section(
                layer_sparsity(weights),
                changes=callback.changes,
                validations=callback.validations,
                before=callback.before,
                sizes=sizes_on_disk(model),
            )
    return None


def _check_place(name: str, place: int | float) -> None:
    number = isinstance(place, int | float) and not isinstance(place, bool)
    if not number or not (0 <= place <= 1 if isinstance(place, float) else place >= 0):
        raise RecipeError(
            f"{name} must be a share of the training in [0, 1], or a whole number of epochs, got "
            f"{place!r}; 0.5 is half of the training, 5 the end of the fifth epoch."
        )


def step_at(place: int | float, trainer: L.Trainer, name: str) -> int:
    """Which optimizer step a share of the training, or a number of epochs, is.

    Args:
        place: a float is a share of the training in [0, 1], a whole number is epochs.
        trainer: with its training data.
        name: who asks, for the messages.

    Raises:
        RecipeError: there are fewer epochs than that, or nobody knows how long the training is.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Look(L.Callback):
        ...     def on_train_start(self, trainer, pl_module):
        ...         self.seen = step_at(0.5, trainer, "Look"), step_at(1, trainer, "Look")
        >>> look = Look()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=2,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[look],
        ... )
        >>> trainer.fit(BoringModel())
        >>> look.seen
        (64, 64)
    """
    try:
        total = trainer.estimated_stepping_batches
    except MisconfigurationException:  # batches are accumulated to a number that changes
        total = math.inf
    batches = trainer.num_training_batches
    known = 0 < total < math.inf
    if not known or (isinstance(place, int) and place and batches == math.inf):
        raise RecipeError(
            f"{name} must know how long the training is, and its data or its accumulation have no "
            "fixed length; set trainer.max_steps, or trainer.limit_train_batches."
        )
    if isinstance(place, float):
        return round(place * total)
    step = place * math.ceil(batches / trainer.accumulate_grad_batches) if place else 0
    if step > total and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise RecipeError(
            f"{name} must end before the training does, got {place} epochs ({step} steps) in a "
            f"training of {total} steps; train longer, or give a share such as 0.6."
        )
    return int(min(step, total))
