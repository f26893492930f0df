"""Plans of fine-tuning: which depth groups of a model are open, and when."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from stablelightning.callbacks.freeze_base import Freezing, Position
from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.functional.discriminative import decayed_factors
from stablelightning.functional.freeze import check_open, gradually_open, open_after_probe

#: Rate of what is fine-tuned, as a share of that of a fresh head.
_SMALL = 0.1


class UnfreezeGradually(Freezing):
    """Train the head alone, then open one depth group after the other, from output to input.

    With no arguments it finds the groups by watching one forward (repeated blocks, or layers; the
    head is the last one) and opens one more with each epoch. A head that is fresh learns what the
    loaded features are good for before its gradients move them.

    It works around any LightningModule. Whatever ``configure_optimizers`` does (all parameters,
    those that take gradients, the head's alone, several groups or optimizers), all parameters are
    in an optimizer before the first step, and no group is added later, so that every scheduler of
    torch works. What is frozen has no gradient and no graph: no optimizer moves it, and neither
    time nor memory is spent on its backward pass. Its norms use their running statistics and keep
    them, also through ``model.train()``. Under DDP the model is wrapped anew at every opening, so
    that processes hold the same weights to the bit. A run that goes on from a checkpoint goes on
    with what was open. What was frozen by hand is opened in turn, and after the fit
    ``requires_grad`` is as it was before.

    Logged: ``unfreeze/open_groups`` and ``unfreeze/trainable_parameters``.

    Args:
        every_n_epochs: epochs between two openings, >= 1; ``None`` is 1 unless steps are given.
        every_n_steps: optimizer steps between two openings instead, >= 1.
        groups: names of modules, or lists of them, from input to output, in the place of groups
            that are found (:func:`~stablelightning.model.depth.depth_groups`).
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1];
            0.4 was used with this plan.
        rates: learning rates of the first group and of the head; between them by equal factors.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        found: the groups, as :class:`~stablelightning.model.depth.DepthGroup`, from input to
            output.
        history: ``epoch``, ``step``, ``open_groups`` and ``opened`` (names of groups) of each
            change, the start included.

    Raises:
        RecipeError: a setting is out of its range; both ways to count are given; the strategy
            shards the model, or promises DDP the same graph in every step; there are two plans.
        ModelError: the LightningModule is compiled as a whole.

    Source:
        Howard, Ruder 2018, arXiv:1801.06146, section 3.3.

    Example:
        >>> from torch import nn
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> model = BoringModel()
        >>> model.layer = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> unfreeze = UnfreezeGradually()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=2,
        ...     limit_train_batches=2, enable_checkpointing=False, enable_model_summary=False,
        ...     callbacks=[unfreeze],
        ... )
        >>> trainer.fit(model)
        >>> for change in unfreeze.history:
        ...     print(change["epoch"], change["opened"])
        0 ['layer.2']
        1 ['layer.0']
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        groups: list[str | list[str]] | None = None,
        layer_decay: float | None = None,
        rates: tuple[float, float] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(groups=groups, layer_decay=layer_decay, rates=rates, exclude=exclude)
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None:
                check_whole(name, value, least=1)
        if every_n_epochs is not None and every_n_steps is not None:
            raise RecipeError(
                "groups are opened by epochs or by steps, got every_n_epochs="
                f"{every_n_epochs} and every_n_steps={every_n_steps}; remove one of them."
            )
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps

    def open_groups(self, position: Position) -> int:
        """One more after each stretch."""
        if self.every_n_steps is not None:
            done, every = position.step, self.every_n_steps
        else:
            done, every = position.epoch, self.every_n_epochs or 1
        return gradually_open(done, every=every, groups=position.groups)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it where the training ends before everything is open."""
        super().on_train_start(trainer, pl_module)
        epochs, steps = self._length
        counted = steps if self.every_n_steps is not None else epochs
        groups = len(self.found)
        if math.isfinite(counted) and not getattr(trainer, "fast_dev_run", 0):
            every = self.every_n_steps or self.every_n_epochs or 1
            last = gradually_open(max(int(counted) - 1, 0), every=every, groups=groups)
            if last < groups:
                rank_zero_info(
                    f"{type(self).__name__}: training will end with {last} of {groups} groups "
                    "open; to open all of them, train longer or open them sooner "
                    "(every_n_steps=...)."
                )


class TrainHead(Freezing):
    """Train the head alone on features that stay as they are: a linear probe.

    The head is the last layer with weights; of a network with several outputs, all of them. Every
    promise of :class:`UnfreezeGradually` holds.

    Args:
        groups: as of :class:`UnfreezeGradually`; the last one is trained.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        found: the groups, as :class:`~stablelightning.model.depth.DepthGroup`, from input to
            output.
        history: the one change, at the start.

    Raises:
        RecipeError: a setting is out of its range; as for :class:`UnfreezeGradually`.
        ModelError: the LightningModule is compiled as a whole.

    Source:
        Alain, Bengio 2016, arXiv:1610.01644 (linear probes).

    Example:
        >>> TrainHead().open_groups(Position(9, 90, 10, 100, 0.9, groups=5))
        1
    """

    def __init__(
        self,
        *,
        groups: list[str | list[str]] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(groups=groups, layer_decay=None, rates=None, exclude=exclude)

    def open_groups(self, position: Position) -> int:
        """The head."""
        return 1


class TrainLastGroups(Freezing):
    """Train the last groups of a model from the first step to the last, and no others.

    Every promise of :class:`UnfreezeGradually` holds.

    Args:
        count: how many groups are trained, the head among them, >= 1.
        groups: as of :class:`UnfreezeGradually`.
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1].
        rates: learning rates of the first group and of the head; between them by equal factors.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        found: the groups, as :class:`~stablelightning.model.depth.DepthGroup`, from input to
            output.
        history: the one change, at the start.

    Raises:
        RecipeError: ``count`` is larger than the number of groups, which is said before the first
            step; as for :class:`UnfreezeGradually`.
        ModelError: the LightningModule is compiled as a whole.

    Source:
        Yosinski, Clune, Bengio, Lipson 2014, arXiv:1411.1792.

    Example:
        >>> TrainLastGroups(2).open_groups(Position(9, 90, 10, 100, 0.9, groups=5))
        2
    """

    def __init__(
        self,
        count: int = 2,
        *,
        groups: list[str | list[str]] | None = None,
        layer_decay: float | None = None,
        rates: tuple[float, float] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(groups=groups, layer_decay=layer_decay, rates=rates, exclude=exclude)
        check_whole("count", count, least=1)
        self.count = count

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to train more groups than there are."""
        check_open(self.count, groups=len(self.found))

    def open_groups(self, position: Position) -> int:
        """As many as were asked for."""
        return self.count


class _Slowly(Freezing):
    """Base of the plans in which all but the head learns at a small rate.

    Args:
        factor: on the rate of all groups but the head, in (0, 1].
        groups, layer_decay, rates, exclude: as of :class:`Freezing`.
    """

    def __init__(self, *, factor: float | None, **settings: Any) -> None:
        super().__init__(**settings)
        if factor is not None and self.rates is not None:
            raise RecipeError(
                "factor and rates are two ways to give each depth a rate, got both "
                f"({factor!r} and {self.rates!r}); remove one of them."
            )
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if factor is not None and not (number and 0 < factor <= 1):
            raise RecipeError(
                f"factor must be in (0, 1], got {factor!r}; to leave groups out, use "
                "TrainLastGroups."
            )
        self.factor = factor

    def factors(self, groups: int) -> list[float]:
        """The head at the optimizer's rate, everything else slower."""
        decayed = decayed_factors(groups, 1.0 if self.layer_decay is None else self.layer_decay)
        small = _SMALL if self.layer_decay is None else 1.0
        factor = small if self.factor is None else self.factor
        return [*(each * factor for each in decayed[:-1]), decayed[-1]]


class FineTuneAll(_Slowly):
    """Train everything from the first step, the head at the optimizer's rate, the rest slowly.

    Nothing is frozen. Rates of several depths in any schedule of torch: see
    :func:`~stablelightning.model.discriminative.split_groups_`.

    Args:
        factor: on the rate of all groups but the head, in (0, 1]; ``None`` is 0.1, or 1 where
            ``layer_decay`` or ``rates`` say it.
        groups: as of :class:`UnfreezeGradually`.
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1].
        rates: learning rates of the first group and of the head; between them by equal factors.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        found: the groups, as :class:`~stablelightning.model.depth.DepthGroup`, from input to
            output.
        history: the one change, at the start.

    Raises:
        RecipeError: a setting is out of its range; as for :class:`UnfreezeGradually`.
        ModelError: the LightningModule is compiled as a whole.

    Source:
        Girshick, Donahue, Darrell, Malik 2014, arXiv:1311.2524, section 2.3 (a tenth of the rate);
        Clark et al. 2020, arXiv:2003.10555, appendix B (``layer_decay``).

    Example:
        >>> FineTuneAll().factors(3), FineTuneAll(layer_decay=0.5).factors(3)
        ([0.1, 0.1, 1.0], [0.25, 0.5, 1.0])
    """

    def __init__(
        self,
        factor: float | None = None,
        *,
        groups: list[str | list[str]] | None = None,
        layer_decay: float | None = None,
        rates: tuple[float, float] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(
            factor=factor, groups=groups, layer_decay=layer_decay, rates=rates, exclude=exclude
        )

    def open_groups(self, position: Position) -> int:
        """All of them."""
        return position.groups


class ProbeThenTune(_Slowly):
    """Train the head alone on the features as they are, then everything, all but the head slowly.

    Features that are good already are spoilt by the gradients of a head that was drawn at random;
    data that differ from the training data suffer most. Once the head fits them, they are moved
    less. Every promise of :class:`UnfreezeGradually` holds.

    Args:
        probe: how long the head is trained alone: a float is a share of the training in (0, 1), a
            whole number epochs, >= 1.
        factor: on the rate of all groups but the head, in (0, 1]; ``None`` is 0.1, or 1 where
            ``layer_decay`` or ``rates`` say it.
        groups: as of :class:`UnfreezeGradually`.
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1].
        rates: learning rates of the first group and of the head; between them by equal factors.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        found: the groups, as :class:`~stablelightning.model.depth.DepthGroup`, from input to
            output.
        history: the two changes.

    Raises:
        RecipeError: a setting is out of its range; the probe is as long as the training, or a share
            of a training whose length nobody knows; as for :class:`UnfreezeGradually`.
        ModelError: the LightningModule is compiled as a whole.

    Source:
        Kumar, Raghunathan, Jones, Ma, Liang 2022, arXiv:2202.10054.

    Example:
        >>> plan = ProbeThenTune(0.5)
        >>> [plan.open_groups(Position(e, 0, 10, 100, e / 10, groups=4)) for e in (0, 4, 5)]
        [1, 1, 4]
    """

    def __init__(
        self,
        probe: int | float = 0.3,
        *,
        factor: float | None = None,
        groups: list[str | list[str]] | None = None,
        layer_decay: float | None = None,
        rates: tuple[float, float] | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(
            factor=factor, groups=groups, layer_decay=layer_decay, rates=rates, exclude=exclude
        )
        if isinstance(probe, float):
            if not 0 < probe < 1:
                raise RecipeError(
                    f"probe must be a share of the training in (0, 1) or epochs >= 1, got {probe}; "
                    "to train the head alone, use TrainHead."
                )
        else:
            check_whole("probe", probe, least=1, hint="a share of the training is a float")
        self.probe = probe

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a probe that would never end."""
        super().on_train_start(trainer, pl_module)
        epochs, steps = self._length
        if isinstance(self.probe, float) and not math.isfinite(steps) and trainer.max_steps <= 0:
            raise RecipeError(
                f"probe={self.probe} is a share of the training, and its length is not known; set "
                "trainer.max_steps, or give probe as a number of epochs."
            )
        if isinstance(self.probe, int) and self.probe >= epochs and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise RecipeError(
                f"probe must end before the training does, got {self.probe} epochs of "
                f"{epochs:.0f}; make it shorter, or use TrainHead."
            )

    def open_groups(self, position: Position) -> int:
        """The head, then all of them."""
        done = position.share if isinstance(self.probe, float) else position.epoch
        return open_after_probe(done >= self.probe, groups=position.groups)
