"""Candidates of a choice among activations: copies of the module, each with another one."""

from collections import Counter
from typing import Any

import lightning as L
from torch import nn

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.contestant import LightningContestant, copy_of, unlogged
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.errors import DataError, ModelError
from stablelightning.model.activation import ActivationSwap, swap_activations
from stablelightning.model.activation_names import activation_name
from stablelightning.model.activation_places import Place, find_places
from stablelightning.model.cures.treatment import record_treatment
from stablelightning.model.initialize import initialize, initialize_called
from stablelightning.model.schemes import scheme_named
from stablelightning.model.step import TrainingStep
from stablelightning.nn.activations import Maxout


class Candidates:
    """What a module's hidden activations are, and copies with others in their place.

    Copies are initialized as the run's :class:`InitializeWeights` would, or already did, initialize
    the module; without one, by the rules of :func:`stablelightning.initialize`.

    Args:
        trainer: about to fit; only asked.
        pl_module: its module.
        batch: one batch of the training data.

    Attributes:
        paths: dotted paths of the hidden activations.
        incumbent: the activation that most of them are.
        mixed: whether there are several.

    Raises:
        ModelError: there is no hidden activation that could be swapped.
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        self._trainer, self._module, self._batch = trainer, pl_module, batch
        self._inputs = _inputs(pl_module, batch)
        names = {place.path: _name(place) for place in _hidden(pl_module, self._inputs)}
        self.paths = list(names)
        self.incumbent = Counter(names.values()).most_common(1)[0][0]
        self.mixed = len(set(names.values())) > 1
        callbacks: list[Any] = getattr(trainer, "callbacks", [])
        drawn = [c for c in callbacks if isinstance(c, InitializeWeights)]
        self._scheme = drawn[0].scheme if drawn else "auto"
        self._alone = not drawn
        # Fresh weights are drawn; of weights that a callback before this one drew, that is known.
        done = drawn[0].report if drawn else None
        self._drawn = [row.name for row in done.rows if row.changed] if done is not None else []

    def build(self, name: str) -> LightningContestant:
        """A contestant with an activation; the incumbent's is the module as it is."""
        module = copy_of(self._module, self._trainer)
        if name != self.incumbent:
            swap_activations(module, name, only=self.paths)
        with unlogged(self._trainer):
            self._initialize(module)
        return LightningContestant(module, self._trainer)

    def swap(self, name: str) -> ActivationSwap:
        """Swap an activation into the module itself, and record it there.

        No weight is touched but those that were drawn, in this run, for the activation before.
        """
        report = swap_activations(self._module, name, only=self.paths)
        plan = {"activation": name, "only": self.paths}
        record_treatment(self._module, "swap-activation", plan)
        if self._drawn:
            with unlogged(self._trainer):
                self._initialize(self._module)
        return report

    def initialize_as_raced(self) -> None:
        """Draw the module's fresh weights as those of the copies that raced were drawn.

        An :class:`InitializeWeights` of the run does that itself, before or after.
        """
        if self._alone:
            with unlogged(self._trainer):
                self._initialize(self._module)

    def _initialize(self, module: L.LightningModule) -> None:
        there = dict(module.named_modules())
        # Maxout layers draw their own weights, which no rule for a plain layer knows.
        known = [name for name in self._drawn if name in there]
        drawn = [name for name in known if not isinstance(there[name], Maxout)]
        try:
            initialize(module, self._inputs, scheme=self._scheme, overwrite=drawn)
        except DataError:  # its own step knows how to take the batch apart
            step = TrainingStep(module, self._batch)
            initialize_called(
                module,
                step.inputs,
                call=step.call,
                scheme=scheme_named(self._scheme),
                overwrite=drawn,
            )


def _inputs(pl_module: L.LightningModule, batch: Any) -> Any:
    try:
        return inputs_and_target(pl_module, batch)[0]
    except DataError:
        return batch


def _hidden(pl_module: nn.Module, inputs: Any) -> list[Place]:
    try:
        places = find_places(pl_module, inputs)
    except (DataError, RuntimeError, TypeError, ValueError, NotImplementedError):
        places = find_places(pl_module)  # a forward that wants something else: structure tells
    hidden = [place for place in places if place.role == "hidden"]
    if not hidden:
        raise ModelError(
            f"there must be a hidden activation to swap, and {type(pl_module).__name__} has none; "
            "make modules of those that its forward calls as functions."
        )
    return hidden


def _name(place: Place) -> str:
    if place.module is not None:
        return activation_name(place.module)
    return str(getattr(place.function, "__name__", ""))
