"""What the plans share that freeze parts of a model and open them while it trains."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.core.optimizer import _MockOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from stablelightning.callbacks.before import BeforeTraining
from stablelightning.callbacks.freeze_groups import Groups, complete_optimizers, tell_of_idle
from stablelightning.callbacks.training_length import training_epochs, training_steps
from stablelightning.callbacks.wrapping import forget_compiled, refuse_fixed, renew_wrapper
from stablelightning.errors import CheckpointError, RecipeError, StableLightningWarning
from stablelightning.functional.discriminative import decayed_factors, sliced_rates
from stablelightning.model.depth import DepthGroup
from stablelightning.model.discriminative import factors_for, split_groups_
from stablelightning.model.freeze import open_last, release_norms, trainable_parameters
from stablelightning.words import some


@dataclass(frozen=True)
class Position:
    """A place of a training, before the batch that comes next.

    Args:
        epoch: epochs that have been trained.
        step: optimizer steps that have been taken, as ``trainer.global_step`` counts them.
        epochs: of the whole training; infinite where its end is not known, or not yet: before
            ``on_train_start``.
        steps: of the whole training; infinite likewise.
        share: of the whole training that is done, 0 to 1; 0 where its end is not known.
        groups: how many depth groups there are.
    """

    epoch: int
    step: int
    epochs: float
    steps: float
    share: float
    groups: int


class Freezing(BeforeTraining):
    """Base of the plans by which groups of a model are open, counted from its output.

    A subclass says how many (:meth:`open_groups`) at any place of the training; what is not open is
    frozen: no gradient, no graph, norms that use their running statistics. Everything else is here:
    all parameters are in the optimizer before the first step, by identity, whatever
    ``configure_optimizers`` does; schedulers never see a new group; DDP is told of each change; a
    run that goes on from a checkpoint goes on with what was open; and in the end ``requires_grad``
    and the modes of norms are as the user had set them.

    Logged: ``unfreeze/open_groups`` and ``unfreeze/trainable_parameters``.

    Args:
        groups: names of modules, or lists of them, from input to output, in the place of groups
            that are found (:func:`~stablelightning.model.depth.depth_groups`).
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1].
        rates: learning rates of the first group and of the head; between them by equal factors.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        found: the groups of the model that trains, as
            :class:`~stablelightning.model.depth.DepthGroup`, from input to output.
        history: ``epoch``, ``step``, ``open_groups`` and ``opened`` (names of groups) of each
            change, the start included.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model, or promises DDP
            the same graph in every step; there are two plans.
        ModelError: the whole module is compiled.

    Example:
        >>> class OpenAll(Freezing):
        ...     def __init__(self):
        ...         super().__init__(groups=None, layer_decay=None, rates=None, exclude=None)
        ...
        ...     def open_groups(self, position):
        ...         return position.groups
        >>> OpenAll().open_groups(Position(0, 0, 1, 5, 0.0, groups=3))
        3
    """

    #: Before any callback that keeps a state of training, or looks at one.
    rank: ClassVar[int | None] = 2

    def __init__(
        self,
        *,
        groups: list[str | list[str]] | None,
        layer_decay: float | None,
        rates: tuple[float, float] | None,
        exclude: list[str] | None,
    ) -> None:
        super().__init__()
        _check_names(groups, exclude)
        if layer_decay is not None and rates is not None:
            raise RecipeError(
                "layer_decay and rates are two ways to give each depth a rate, got both "
                f"({layer_decay!r} and {rates!r}); remove one of them."
            )
        if layer_decay is not None:
            decayed_factors(1, layer_decay)  # says what is wrong with it
        if rates is not None:
            _check_rates(rates)
        self.groups = groups
        self.layer_decay = layer_decay
        self.rates = rates
        self.exclude = exclude
        self.found: list[DepthGroup] = []
        self.history: list[dict[str, Any]] = []
        self._open = 0
        self._resumed: dict[str, Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self._cutter: Groups | None = None
        self._held: L.LightningModule | None = None
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._length = (math.inf, math.inf)
        self._wrapped = 0  # groups that were open when the model was wrapped last

    # ---- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def open_groups(self, position: Position) -> int:
        """How many groups are open there, counted from the output; the head is the first.

        Asked before every optimizer step, on every process, and must give the same on all of them.
        What is open stays open, whatever is said later.
        """

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called once the groups are :attr:`found`, before anything is frozen.

        Not in a run that goes on from a checkpoint.

        Raises:
            RecipeError: the plan does not fit the groups.
        """

    def factors(self, groups: int) -> list[float] | None:
        """Factors on the optimizer's rate of each group, from input to output; ``None`` for one.

        Not asked where ``rates`` are given.
        """
        return None if self.layer_decay is None else decayed_factors(groups, self.layer_decay)

    # ---- when -------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot be, and let ``configure_optimizers`` see every parameter."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.leave()
        self._resumed = None
        refuse_fixed(trainer, pl_module, name=type(self).__name__)
        _refuse_others(trainer)
        self.when_the_model_is_there(trainer, pl_module, self._let_all_train)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the groups, see to the optimizers, and freeze what is not open."""
        super().leave()
        resumed, self._resumed = self._resumed, None
        self._hold(pl_module, self._groups_of(trainer, pl_module))
        if resumed is None:
            self._open = 0
            if trainer.global_step == 0:
                self.history = []
            self.prepare(trainer, pl_module)
        else:
            self._take_up(resumed)
        self._see_to_optimizers(trainer, pl_module)
        if resumed is None:
            self._open_to(trainer, pl_module, self.open_groups(self._position(trainer, 0)))
        # Norms wait: Lightning warns of modules in eval when training starts.
        self._wrapped = len(self.found)
        self._freeze(trainer, pl_module, norms=False)
        tell_of_idle(trainer.optimizers, name=type(self).__name__)
        if len(self.found) == 1:
            _say(
                f"{type(self).__name__} finds a single group in {type(pl_module).__name__} "
                f"({self.found[0].name}), which is open: nothing is frozen; name groups of your "
                "own (groups=...) to freeze some."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put frozen norms into eval."""
        self._length = training_epochs(trainer), _steps(trainer)
        self._freeze(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open what is due with the epoch."""
        self._advance(trainer, pl_module, 0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open what is due with the step; not while gradients are accumulated."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._advance(trainer, pl_module, batch_idx)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log, at the steps at which Lightning logs."""
        if trainer.barebones or not trainer._logger_connector.should_update_logs:
            return
        trained = trainable_parameters(pl_module)
        pl_module.log("unfreeze/open_groups", float(self._open))
        pl_module.log("unfreeze/trainable_parameters", float(trained))

    def leave(self) -> None:
        """Give parameters and norms the flags that they had."""
        super().leave()
        if self._held is not None:
            release_norms(self._held, self.found)
        for parameter, flag in self._flags:
            parameter.requires_grad = flag
        self._forget()

    # ---- parameters -------------------------------------------------------------------------

    def _let_all_train(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let optimizers see what will be opened, also what was frozen by hand."""
        self._cutter = Groups(pl_module, named=self.groups, exclude=self.exclude or ())
        self._flags = [(p, p.requires_grad) for p in self._cutter.managed]
        for parameter in self._cutter.managed:
            parameter.requires_grad = True
        if self._cutter.frozen_by_hand:
            rank_zero_info(
                f"{type(self).__name__}: {some(self._cutter.frozen_by_hand)} had been frozen by "
                "hand, and will be opened in turn; name in exclude what is to stay frozen."
            )

    def _groups_of(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[DepthGroup]:
        cutter = self._cutter or Groups(pl_module, named=self.groups, exclude=self.exclude or ())
        return cutter.of_the_run(trainer, pl_module, name=type(self).__name__)

    def _hold(self, pl_module: L.LightningModule, found: list[DepthGroup]) -> None:
        self._held, self.found = pl_module, found
        # A checkpoint may have brought more parameters, such as those of a cure.
        known = {id(parameter) for parameter, _ in self._flags}
        parameters = dict(pl_module.named_parameters())
        managed = (parameters[name] for group in found for name in group.parameters)
        self._flags += [(p, p.requires_grad) for p in managed if id(p) not in known]

    def _see_to_optimizers(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Every parameter is in a group, and every depth has its rate, before the first step."""
        name = type(self).__name__
        optimizers = [o for o in trainer.optimizers if not isinstance(o, _MockOptimizer)]
        missing = complete_optimizers(optimizers, pl_module, self.found, name=name)
        if missing:
            rank_zero_info(
                f"{name}: {some(missing)} were in no optimizer, and are in a group of the head's "
                "from now on."
            )
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        parameters = dict(pl_module.named_parameters())
        parts = [[parameters[n] for n in group.parameters] for group in self.found]
        names = [group.name for group in self.found]
        for optimizer in optimizers:
            factors = self.factors(len(parts))
            if self.rates is not None:
                rates = sliced_rates(len(parts), *self.rates)
                factors = factors_for(optimizer, schedulers, rates)
            if factors is not None:
                split_groups_(optimizer, schedulers, parts, factors=factors, names=names)

    # ---- opening ----------------------------------------------------------------------------

    def _position(self, trainer: L.Trainer, batch_idx: int) -> Position:
        epochs, steps = self._length
        batches = trainer.num_training_batches
        epoch, step = trainer.current_epoch, trainer.global_step
        share = step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        if math.isfinite(epochs) and 0 < batches < math.inf:
            share = max(share, (epoch + batch_idx / batches) / max(epochs, 1.0))
        return Position(epoch, step, epochs, steps, min(share, 1.0), len(self.found))

    def _advance(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> None:
        wanted = self.open_groups(self._position(trainer, batch_idx))
        if wanted <= self._open:
            return
        self._open_to(trainer, pl_module, wanted)
        self._freeze(trainer, pl_module)

    def _freeze(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, norms: bool = True
    ) -> None:
        """Freeze what is not open, and tell what has looked at parameters before."""
        open_last(pl_module, self.found, self._open, norms=norms)
        if self._wrapped != self._open:
            renew_wrapper(trainer, pl_module)
            forget_compiled(pl_module)
            self._wrapped = self._open

    def _open_to(self, trainer: L.Trainer, pl_module: L.LightningModule, wanted: int) -> None:
        """Count them as open, and tell."""
        name, groups = type(self).__name__, len(self.found)
        if not 1 <= wanted <= groups:
            raise RecipeError(
                f"{name} must open 1 to {groups} groups, which is how many this model has, got "
                f"{wanted}; open fewer."
            )
        opened = [group.name for group in self.found[groups - wanted : groups - self._open]]
        self._open = wanted
        epoch, step = trainer.current_epoch, trainer.global_step
        self.history.append({"epoch": epoch, "step": step, "open_groups": wanted, "opened": opened})
        rank_zero_info(
            f"{name}: epoch {epoch}, step {step}: opened {some(opened[::-1])}; {wanted} of "
            f"{groups} groups are open."
        )

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How many groups are open, which there are, and when they were opened; plain types."""
        return {
            "open_groups": self._open,
            "groups": _plain(self.found),
            "history": [dict(change) for change in self.history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was open; a test of a checkpoint forgets nothing of training."""
        if not self.goes_on or not state_dict["groups"]:  # Lightning's tuner takes back a trial
            return
        self._open = state_dict["open_groups"]
        if self._held is None:
            self._resumed = state_dict
            self.found = [DepthGroup(n, tuple(names), ()) for n, names in state_dict["groups"]]
        self.history = [dict(change) for change in state_dict["history"]]

    def _take_up(self, state: dict[str, Any]) -> None:
        if state["groups"] != _plain(self.found):
            raise CheckpointError(
                "a resumed run keeps its depth groups, and the checkpoint has others "
                f"({some([name for name, _ in state['groups']])}) than this model "
                f"({some([group.name for group in self.found])}); resume with the model and the "
                "settings of the first run, or start anew from its weights."
            )
        self._open = state["open_groups"]


def _plain(groups: Sequence[DepthGroup]) -> list[list[Any]]:
    return [[group.name, list(group.parameters)] for group in groups]


def _steps(trainer: L.Trainer) -> float:
    try:
        return float(training_steps(trainer))
    except RecipeError:
        return math.inf


def _refuse_others(trainer: L.Trainer) -> None:
    kinds = Freezing | BaseFinetuning
    others = [c for c in trainer.callbacks if isinstance(c, kinds)]  # type: ignore[attr-defined]
    if len(others) > 1:
        raise RecipeError(
            f"a model is frozen by one callback, got {len(others)} "
            f"({', '.join(type(c).__name__ for c in others)}); remove all but one."
        )


def _check_names(groups: Any, exclude: Any) -> None:
    if groups is not None and (isinstance(groups, str) or not groups):
        raise RecipeError(
            f"groups must be a list of module names from input to output, got {groups!r}; such as "
            "[[conv1, bn1], layer1, fc]."
        )
    if exclude is not None and (isinstance(exclude, str) or not isinstance(exclude, Sequence)):
        raise RecipeError(f"exclude must be a list of names, got {exclude!r}; write [{exclude}].")


def _check_rates(rates: Any) -> None:
    if isinstance(rates, str) or not isinstance(rates, Sequence) or len(rates) != 2:
        raise RecipeError(
            f"rates must be two learning rates, of the input first, got {rates!r}; such as "
            "[1e-5, 1e-3]."
        )
    sliced_rates(2, *rates)


def _say(message: str) -> None:
    rank_zero_warn(message, category=StableLightningWarning)
