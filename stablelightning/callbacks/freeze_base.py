"""What the plans share that freeze parts of a model and open them while it trains."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from stablelightning.callbacks.before import BeforeTraining
from stablelightning.callbacks.example_run import example_run
from stablelightning.callbacks.training_length import training_epochs, training_steps
from stablelightning.callbacks.wrapping import forget_compiled, refuse_fixed, renew_wrapper
from stablelightning.errors import (
    CheckpointError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.functional.discriminative import decayed_factors, sliced_rates
from stablelightning.model.depth import DepthGroup, depth_groups
from stablelightning.model.discriminative import factors_for, split_groups_
from stablelightning.model.freeze import (
    open_last,
    release_norms,
    trainable_parameters,
    without,
)
from stablelightning.model.membership import missing_parameters, take_in_

#: Names in one message.
_NAMED = 4


@dataclass(frozen=True)
class Position:
    """A place of a training, before the batch that comes next.

    Args:
        epoch: epochs that have been trained.
        step: optimizer steps that have been taken, as ``trainer.global_step`` counts them.
        epochs: of the whole training; infinite where its end is not known.
        steps: of the whole training; infinite where its end is not known, or not yet: before
            ``on_train_start``.
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
        RecipeError: a setting is out of its range; the strategy shards the model; two plans.
        ModelError: the whole module is compiled.
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
        self._module: L.LightningModule | None = None
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._left: list[str] = []
        self._length = (math.inf, math.inf)

    # ---- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def open_groups(self, position: Position) -> int:
        """How many groups are open there, counted from the output; the head is the first.

        Asked before every batch, on every process, and must give the same on all of them.
        """

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called once the groups are :attr:`found`, before anything is frozen.

        Not in a run that goes on from a checkpoint.

        Raises:
            RecipeError: the plan does not fit the groups.
        """

    def factors(self, groups: int) -> list[float] | None:
        """Factors on the optimizer's rate of each group, from input to output; ``None`` for one."""
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
        self.found = self._find(trainer, pl_module)
        if resumed is None:
            if trainer.global_step == 0:
                self.history = []
            self._open = 0
            self.prepare(trainer, pl_module)
        else:
            self._take_up(resumed)
        self._see_to_optimizers(trainer, pl_module)
        if resumed is None:
            self._set(trainer, self.open_groups(self._position(trainer, 0)))
        # Norms wait: Lightning warns of modules in eval when training starts.
        open_last(pl_module, self.found, self._open, norms=False)
        renew_wrapper(trainer, pl_module)
        if len(self.found) == 1:
            _say(
                f"{type(self).__name__} finds a single group in {type(pl_module).__name__} "
                f"({self.found[0].name}), which is open; nothing is frozen. Name groups of your "
                "own (groups=...) to freeze some."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put frozen norms into eval."""
        self._length = training_epochs(trainer), _steps(trainer)
        open_last(pl_module, self.found, self._open)

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
        pl_module.log("unfreeze/open_groups", float(self._open))
        trained = float(trainable_parameters(pl_module))
        pl_module.log("unfreeze/trainable_parameters", trained)

    def leave(self) -> None:
        """Give parameters and norms the flags that they had."""
        super().leave()
        if self._module is not None:
            release_norms(self._module, self.found)
        for parameter, flag in self._flags:
            parameter.requires_grad = flag
        self._forget()

    # ---- parameters -------------------------------------------------------------------------

    def _let_all_train(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let optimizers see what will be opened, also what was frozen by hand.

        A group of which a part is trained and another is not was made so by its author (fixed
        positions, low-rank adapters around fixed weights): that part stays frozen.
        """
        self._module = pl_module
        parameters = dict(pl_module.named_parameters())
        opened: list[str] = []
        for group in self._cut(pl_module, None):
            inside = [name for name in group.parameters if _can_train(parameters[name])]
            frozen = [name for name in inside if not parameters[name].requires_grad]
            if len(frozen) == len(inside):
                opened += frozen
            else:
                self._left += frozen
            self._left += [name for name in group.parameters if name not in inside]
            self._flags += [
                (p, p.requires_grad) for p in map(parameters.get, inside) if p is not None
            ]
        for name in opened:
            parameters[name].requires_grad = True
        if opened:
            rank_zero_info(
                f"{type(self).__name__}: {_some(opened)} had been frozen by hand, and will be "
                "opened in turn; name in exclude what is to stay frozen."
            )

    def _cut(self, pl_module: L.LightningModule, run: Any) -> list[DepthGroup]:
        try:
            groups = depth_groups(pl_module, run, named=self.groups)
        except ModelError:  # nothing that multiplies: all of it is one group
            names = tuple(name for name, _ in pl_module.named_parameters())
            modules = tuple(name for name, _ in pl_module.named_modules() if name)
            groups = [DepthGroup(type(pl_module).__name__, names, modules)]
        left = [*(self.exclude or ()), *self._left]
        kept = [without(group, left) for group in groups] if left else groups
        return [group for group in kept if group.parameters]

    def _find(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[DepthGroup]:
        """The groups of the model as it trains, the same on every process."""
        run = None
        if self.groups is None:
            try:
                run = example_run(trainer, pl_module)
            except Exception as error:  # a dataset, a transform: whatever they raise
                rank_zero_info(
                    f"{type(self).__name__} takes layers in the order in which they were made: "
                    f"{error}"
                )
        found = self._cut(pl_module, run)
        if not found:
            raise ModelError(
                f"{type(self).__name__} needs parameters to train, and "
                f"{type(pl_module).__name__} has none that are not excluded; exclude fewer."
            )
        return trainer.strategy.broadcast(found)

    def _see_to_optimizers(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        parts = [[parameters[name] for name in group.parameters] for group in self.found]
        wanted = {name: parameters[name] for group in self.found for name in group.parameters}
        missing = missing_parameters(trainer.optimizers, wanted)
        nearest = [p for part in reversed(parts) for p in part]
        take_in_(trainer.optimizers, missing, like=nearest)
        if missing and trainer.optimizers:
            rank_zero_info(
                f"{type(self).__name__}: {_some(list(missing))} were in no optimizer, and are in "
                "a group of the head's from now on."
            )
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            factors = self.factors(len(parts))
            if self.rates is not None:
                rates = sliced_rates(len(parts), *self.rates)
                factors = factors_for(optimizer, schedulers, rates)
            if factors is not None:
                names = [group.name for group in self.found]
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
        if wanted == self._open:
            return
        self._set(trainer, wanted)
        open_last(pl_module, self.found, self._open)
        renew_wrapper(trainer, pl_module)
        forget_compiled(pl_module)

    def _set(self, trainer: L.Trainer, wanted: int) -> None:
        if not 1 <= wanted <= len(self.found):
            raise RecipeError(
                f"{type(self).__name__} must open 1 to {len(self.found)} groups, the number of "
                f"depth groups of this model, got {wanted}."
            )
        before, self._open = self._open, wanted
        opened = [group.name for group in self.found[len(self.found) - wanted :]]
        opened = opened[: wanted - before] if wanted > before else []
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "open_groups": wanted,
                "opened": opened,
            }
        )
        what = f"opened {_some(opened[::-1])}" if opened else "froze groups again"
        rank_zero_info(
            f"{type(self).__name__}: epoch {trainer.current_epoch}, step {trainer.global_step}: "
            f"{what}; {wanted} of {len(self.found)} groups are open."
        )

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How many groups are open, which there are, and when they were opened; plain types."""
        return {
            "open_groups": self._open,
            "groups": [[group.name, list(group.parameters)] for group in self.found],
            "history": [dict(change) for change in self.history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was open; a test of a checkpoint forgets nothing of training."""
        if not self.goes_on:
            return
        self._resumed = state_dict
        self._open = state_dict["open_groups"]
        self.found = [DepthGroup(name, tuple(p), ()) for name, p in state_dict["groups"]]
        self.history = [dict(change) for change in state_dict["history"]]

    def _take_up(self, state: dict[str, Any]) -> None:
        saved = [[name, list(parameters)] for name, parameters in state["groups"]]
        present = [[group.name, list(group.parameters)] for group in self.found]
        if saved != present:
            raise CheckpointError(
                f"a resumed run keeps its depth groups, and the checkpoint has {len(saved)} others "
                f"than the {len(present)} of this model; resume with the model and the settings of "
                "the first run, or start anew from its weights."
            )
        self._open = state["open_groups"]


def _can_train(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


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
    if isinstance(groups, str) or (groups is not None and not groups):
        raise RecipeError(
            f"groups must be a list of module names from input to output, got {groups!r}; such as "
            "[[conv1, bn1], layer1, fc]."
        )
    if (exclude is not None and not isinstance(exclude, Sequence)) or isinstance(exclude, str):
        raise RecipeError(f"exclude must be a list of names, got {exclude!r}; write [{exclude}].")


def _check_rates(rates: Any) -> None:
    if isinstance(rates, str) or not isinstance(rates, Sequence) or len(rates) != 2:
        raise RecipeError(
            f"rates must be two learning rates, of the input first, got {rates!r}; such as "
            "[1e-5, 1e-3]."
        )
    sliced_rates(2, *rates)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _say(message: str) -> None:
    rank_zero_warn(message, category=StableLightningWarning)
