"""Which parts of a module a plan of fine-tuning opens one after the other, and which it leaves."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from stablelightning.callbacks.before import first_member
from stablelightning.callbacks.example_run import example_run
from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.depth import DepthGroup, depth_groups
from stablelightning.model.freeze import without
from stablelightning.model.membership import missing_parameters, take_in_
from stablelightning.words import some


class Groups:
    """The depth groups of a module, without what is left as it is.

    Left are what the user excludes, what holds no floats, and what the author of the module has
    fixed: where a part of a group is trained and another is not (fixed positions, low-rank adapters
    around fixed weights), that other part stays frozen. A group that is frozen as a whole was
    frozen by hand, and is opened in its turn.

    Args:
        pl_module: of which the layers are there.
        named: groups of the user's own, ``None`` to find them.
        exclude: names of modules and parameters.

    Attributes:
        managed: the parameters that may be frozen and opened.
        frozen_by_hand: names of those that were frozen as a whole group.

    Raises:
        RecipeError: a name is in no place of the module.
    """

    def __init__(
        self,
        pl_module: L.LightningModule,
        *,
        named: Sequence[str | Sequence[str]] | None,
        exclude: Sequence[str],
    ) -> None:
        _check_exclude(exclude, pl_module)
        self._named = None if named is None else [*named, *_outside(named, exclude)]
        self._left = list(exclude)
        self.managed: list[nn.Parameter] = []
        self.frozen_by_hand: list[str] = []
        parameters = dict(pl_module.named_parameters())
        for group in self.cut(pl_module):
            floats = [n for n in group.parameters if _is_floating(parameters[n])]
            frozen = [n for n in floats if not parameters[n].requires_grad]
            if len(frozen) == len(floats):
                self.frozen_by_hand += frozen
                frozen = []
            fixed = [n for n in group.parameters if n in frozen or n not in floats]
            self._left += fixed
            self.managed += [parameters[n] for n in floats if n not in fixed]

    def cut(self, pl_module: L.LightningModule, run: Any = None) -> list[DepthGroup]:
        """Cut the module into groups.

        Args:
            pl_module: the module as it is now.
            run: runs it once; ``None`` takes the order in which layers were made.
        """
        try:
            with first_member(pl_module):
                groups = depth_groups(pl_module, run, named=self._named)
        except ModelError:
            if run is not None:  # its layers are called in a way that no hook sees
                return self.cut(pl_module)
            groups = [_whole(pl_module)]
        kept = [without(group, self._left) for group in groups] if self._left else groups
        return [group for group in kept if group.parameters]

    def of_the_run(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, name: str
    ) -> list[DepthGroup]:
        """Cut the module as it trains, in the order of its forward, on every process alike.

        Args:
            trainer: about to fit; every process must call this.
            pl_module: its module.
            name: who asks, for messages.

        Raises:
            ModelError: nothing is left to open.
        """
        run = None
        if self._named is None and trainer.limit_train_batches != 0:
            try:
                run = example_run(trainer, pl_module)
            except Exception as error:  # a dataset, a transform: whatever they raise
                rank_zero_info(f"{name} takes layers in the order in which they were made: {error}")
        found = self.cut(pl_module, run)
        if not found:
            raise ModelError(
                f"{name} needs parameters to open, and {type(pl_module).__name__} has none that "
                "are not excluded; exclude fewer."
            )
        return trainer.strategy.broadcast(found)


def complete_optimizers(
    optimizers: Sequence[Optimizer],
    pl_module: L.LightningModule,
    found: Sequence[DepthGroup],
    *,
    name: str,
) -> list[str]:
    """Take the parameters of groups that are in no optimizer into a group of the head's.

    Args:
        optimizers: changed in place; without any, nothing happens.
        pl_module: of which the groups are.
        found: from input to output.
        name: who asks, for the message.

    Returns:
        The names of those that were in none.

    Raises:
        RecipeError: an optimizer has shared out its parameters over the processes already.
    """
    if not optimizers:
        return []
    parameters = dict(pl_module.named_parameters())
    wanted = {n: parameters[n] for group in reversed(found) for n in group.parameters}
    missing = missing_parameters(optimizers, wanted)
    kinds = {kind.__name__ for o in optimizers for kind in type(o).__mro__}
    if missing and "ZeroRedundancyOptimizer" in kinds:
        raise RecipeError(
            f"{name} adds the parameters that are in no optimizer to one, and "
            "ZeroRedundancyOptimizer has shared out its own already; give it all parameters."
        )
    take_in_(optimizers, missing, like=list(wanted.values()))
    return list(missing)


def tell_of_idle(optimizers: Sequence[Optimizer], *, name: str) -> None:
    """Say which of several optimizers has nothing to train, once groups are frozen.

    A generator whose network is frozen as a whole has a loss without a gradient where the other
    network is toggled off, and torch's own message does not say why.

    Args:
        optimizers: only read.
        name: who has frozen, for the message.
    """
    held = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
    idle = [i for i, inside in enumerate(held) if not any(p.requires_grad for p in inside)]
    if idle and len(held) > 1:
        rank_zero_info(
            f"{name}: optimizer {some([str(i) for i in idle])} of {len(held)} has nothing to train "
            "yet, and a loss of its parameters alone no gradient; to train a part of each network "
            "from the start, name a part of each in the last of groups=[...]."
        )


def _outside(groups: Sequence[str | Sequence[str]], exclude: Sequence[str]) -> list[str]:
    """What is excluded and in none of the named groups, which must hold every parameter."""
    names = [n for group in groups for n in ([group] if isinstance(group, str) else group)]
    return [e for e in exclude if not any(f"{e}.".startswith(f"{name}.") for name in names)]


def _check_exclude(exclude: Sequence[str], model: nn.Module) -> None:
    modules = [name for name, _ in model.named_modules() if name]
    known = [*modules, *(name for name, _ in model.named_parameters(remove_duplicate=False))]
    for name in exclude:
        if name not in known:
            near = get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {some(modules)}."
            raise RecipeError(
                f"exclude must name modules or parameters of {type(model).__name__}, got "
                f"{name!r}; {hint}"
            )


def _whole(model: nn.Module) -> DepthGroup:
    """One group of everything, where nothing multiplies its input by a weight."""
    names = tuple(name for name, _ in model.named_parameters())
    modules = tuple(name for name, _ in model.named_modules() if name)
    return DepthGroup(type(model).__name__, names, modules)


def _is_floating(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()
