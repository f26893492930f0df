"""Pretraining as the first part of one run: another task, an objective, or weights from a file."""

import os
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from stablelightning.callbacks.agreement import anyones_failure
from stablelightning.callbacks.before import BeforeTraining, first_member, for_each_member
from stablelightning.callbacks.contestant import copy_of
from stablelightning.callbacks.described import check_described, described, plain
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.callbacks.inner_training import (
    like_those_of,
    seed_generators,
    tell,
    train_inside,
)
from stablelightning.callbacks.own_inputs import OwnInputs
from stablelightning.callbacks.resume import checkpoint_to_load
from stablelightning.callbacks.steps import unreplaced_methods
from stablelightning.checks import check_whole
from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.pretrained import give_outputs, inner_network, take_over
from stablelightning.model.weights_file import load_weights
from stablelightning.model.weights_report import LoadReport

if TYPE_CHECKING:
    Description = dict[str, Any]
else:
    #: With the types of its values the parser would make objects of what is described in them.
    Description = dict

#: What a module remembers, so that a second ``fit`` does not begin from the beginning.
_MARK = "_stable_pretrained"
#: What a record says where nothing was trained.
_NOTHING: dict[str, Any] = {
    "kind": "",
    "data": "",
    "epochs": 0,
    "kept": 0,
    "train": [],
    "validation": [],
    "loaded": {},
}


class PretrainFirst(BeforeTraining):
    """Begin ``fit`` from weights that were learned on something else, in the same run.

    Before the first step of the training that was asked for, the module's network gets its weights

    - from ``weights``, a backbone file or a checkpoint; then, where there are ``data`` or an
      ``objective``, they are trained further:
    - on the labels of other ``data``, with the module's own loss and optimizer and a head of the
      size of that task (transfer); or
    - by an ``objective`` that looks at no labels (:mod:`stablelightning.pretraining`), on ``data``,
      or without them on this run's own training rows, also those whose labels are not used
      (``labels_per_class``): much data and few labels in one command.

    All of it happens on a copy, of which everything below the head is taken over; the module's own
    head is for its own data, and stays as it was made. What was taken over counts as loaded:
    :class:`~stablelightning.callbacks.initialize.InitializeWeights` leaves it and draws the head.
    The training inside has a Trainer of its own, which logs nothing and has this one's devices,
    precision, clipping, limits and, where it has them, initialization and clipping callbacks. It
    leaves generators, signal handlers, loaders and the module's methods as they were, and with the
    same seed gives the same weights. Under DDP all processes train together.

    It acts in ``setup``, once the module has made its layers and before it is wrapped; put it
    before callbacks that look at the weights then. A run that goes on from a checkpoint, a module
    that was pretrained already, and validation, test and prediction are left alone.

    Logged when training starts: ``pretrain/loss`` and ``pretrain/val_loss`` of the epoch that was
    kept, ``pretrain/epochs``, ``pretrain/loaded_share``.

    Args:
        data: a data module, or its description (``class_path`` and ``init_args``, as in a recipe),
            with which the callback pickles; its ``num_outputs``, if it has one, is the size of the
            head.
        weights: path of a file that
            :func:`~stablelightning.model.weights_file.load_weights` reads.
        objective: description of a module that takes ``network``, such as ``{"class_path":
            "stablelightning.pretraining.SimCLR"}``, or its dotted path alone.
        max_epochs: of the training inside, >= 1. Of these the one with the smallest validation loss
            counts, where there are validation rows.
        seed: of everything drawn in it, >= 0.
        required: raise where it cannot be done; ``False`` says so in a warning, and training starts
            from the weights as they are.

    Attributes:
        record: what was done, as plain types: ``kind`` (``"supervised"``, the objective's name, or
            ``""``), ``data``, ``epochs``, ``kept``, the losses ``train`` and ``validation`` of each
            epoch, ``loaded`` (share and summary of the file), ``taken_over`` (names); empty where
            nothing was done.
        report: of the file, on process 0.

    Raises:
        RecipeError: a setting is out of its range; from ``setup``: there is nothing to begin with,
            a description fits no class, or the strategy shards the model.
        CheckpointError: from ``setup``: the file cannot be read, or does not fit.

    Source:
        Yosinski et al. 2014, arXiv:1411.1792 (transfer); Chen et al. 2020, arXiv:2006.10029 (few
        labels after an objective without labels).

    Example:
        >>> from stablelightning.module import StableModule
        >>> from stablelightning.data import DigitsData
        >>> from stablelightning.nn import MLP
        >>> few = DigitsData(held_out=(0, 1, 2, 3, 4), labels_per_class=10)
        >>> first = PretrainFirst(DigitsData(held_out=(5, 6, 7, 8, 9)), max_epochs=2)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[first],
        ... )
        >>> trainer.fit(StableModule(MLP(64, 5), task="classification"), datamodule=few)
        >>> first.record["kind"], first.record["epochs"]
        ('supervised', 2)
    """

    def __init__(
        self,
        data: Description | L.LightningDataModule | None = None,
        *,
        weights: str | None = None,
        objective: Description | str | None = None,
        max_epochs: int = 30,
        seed: int = 0,
        required: bool = True,
    ) -> None:
        super().__init__()
        check_whole("max_epochs", max_epochs, least=1)
        check_whole("seed", seed, least=0)
        data, objective = plain(data), plain(objective)
        if data is not None and not isinstance(data, L.LightningDataModule):
            check_described("data", data)
        if objective is not None:
            check_described("objective", objective)
        self.data = data
        self.weights = None if weights is None else os.fspath(weights)
        self.objective = objective
        self.max_epochs = max_epochs
        self.seed = seed
        self.required = required
        self.record: dict[str, Any] = {}
        self.report: LoadReport | None = None
        self._untold = False

    # ---- when -------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Pretrain, once the layers are there.

        Raises:
            RecipeError: there is nothing to begin with; what was learned would be drawn anew.
        """
        super().setup(trainer, pl_module, stage)
        begun = trainer.global_step or _MARK in vars(pl_module) or checkpoint_to_load(trainer)
        if stage != "fit" or begun or trainer.limit_train_batches == 0:
            return
        if self.data is None and self.weights is None and self.objective is None:
            raise RecipeError(
                "PretrainFirst needs something to begin with, got none of data, weights and "
                "objective; give one of them, or remove it."
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, InitializeWeights) and callback.overwrite:
                raise RecipeError(
                    "InitializeWeights(overwrite=True) draws anew what PretrainFirst has learned; "
                    "leave out overwrite, and only what is fresh is drawn."
                )
        self.when_the_model_is_there(trainer, pl_module, self._begin)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what was done."""
        self.leave()
        if self._untold and not trainer.barebones:
            rank_zero_info(self.summary())
            for logger in trainer.loggers:
                logger.log_metrics(self.numbers(), step=0)
        self._untold = False

    # ---- a checkpoint -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was done, in plain types."""
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier part of the run did."""
        self.record = state_dict["record"]

    # ---- what is told -----------------------------------------------------------------------

    def summary(self) -> str:
        """What was done, in a sentence; ``""`` where nothing was."""
        record, parts = self.record, []
        if record.get("loaded"):
            parts.append(record["loaded"]["summary"])
        if record.get("kind"):
            how = "labels" if record["kind"] == "supervised" else record["kind"]
            losses = record["train"]
            told = f"pretrained by {how} on {record['data']} for {record['epochs']} epochs"
            parts.append(f"{told}, loss {losses[0]:.3g} to {losses[-1]:.3g}" if losses else told)
            if record["validation"]:
                parts[-1] += f", epoch {record['kept']} kept"
        return "; ".join(parts)

    def numbers(self) -> dict[str, float]:
        """The same as numbers, ``pretrain/<quantity>``."""
        record, found = self.record, {}
        if record.get("kind"):
            place = record["kept"] - 1
            found["epochs"] = float(record["epochs"])
            for name, losses in (("loss", record["train"]), ("val_loss", record["validation"])):
                if 0 <= place < len(losses):
                    found[name] = losses[place]
        if record.get("loaded"):
            found["loaded_share"] = record["loaded"]["share"]
        return {f"pretrain/{name}": value for name, value in found.items()}

    # ---- what is done -----------------------------------------------------------------------

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learned: _Learned | None = None
        failure: Exception | None = None
        with undisturbed_generators():
            seed_generators(self.seed)
            # Reading data and running somebody's steps may raise anything, on one process alone.
            for part in (self._prepared, self._trained):
                try:
                    if failure is None:
                        with first_member(pl_module):
                            learned = part(trainer, pl_module, learned)
                except Exception as error:
                    failure = error
                failure = anyones_failure(trainer, failure)
        if failure is not None:
            return self._give_up(failure)
        assert learned is not None
        values, record = learned.values, learned.record
        if trainer.world_size > 1:  # each has statistics of norms of its own
            values, record = trainer.strategy.broadcast((values, record))
        try:
            for_each_member(lambda _, member: record.update(taken_over=take_over(member, values)))(
                trainer, pl_module
            )
        except ModelError as error:  # on all processes alike
            return self._give_up(error)
        vars(pl_module)[_MARK] = True
        self.record, self._untold = record, True

    def _give_up(self, failure: Exception) -> None:
        if self.required:
            raise failure
        lines = str(failure).strip().splitlines() or [type(failure).__name__]
        rank_zero_warn(
            f"PretrainFirst leaves the weights as they are, and training goes on: {lines[0]}",
            category=StableLightningWarning,
        )

    def _prepared(
        self, trainer: L.Trainer, pl_module: L.LightningModule, _: "_Learned | None"
    ) -> "_Learned":
        """A copy with the weights of the file, and what will train it."""
        with unreplaced_methods(pl_module):
            module = copy_of(pl_module, trainer)
        learned = _Learned(module, record=dict(_NOTHING))
        if self.weights is not None and trainer.is_global_zero:  # DDP hands them on
            self.report = report = load_weights(module, self.weights)
            learned.record["loaded"] = {"share": report.share, "summary": report.summary()}
            state = module.state_dict()
            learned.values = {name: state[name].detach().cpu() for name in report.loaded}
        if self.data is None and self.objective is None:
            return learned
        learned.data = self._data_of(trainer, pl_module)
        if self.objective is None:
            give_outputs(module, getattr(learned.data, "num_outputs", None))
            learned.learner = module
        else:
            learned.name, network = inner_network(module)
            learned.network = network
            learned.learner = described(
                "objective", self.objective, L.LightningModule, network=network
            )
        return learned

    def _data_of(self, trainer: L.Trainer, pl_module: L.LightningModule) -> L.LightningDataModule:
        if self.data is None:
            return OwnInputs(trainer, pl_module)
        if isinstance(self.data, L.LightningDataModule):
            return self.data
        return described("data", self.data, L.LightningDataModule)

    def _trained(
        self, trainer: L.Trainer, pl_module: L.LightningModule, learned: "_Learned | None"
    ) -> "_Learned":
        assert learned is not None
        learner, data = learned.learner, learned.data
        if learner is None or data is None:
            return learned
        how = "by labels" if self.objective is None else f"by {_kind(learner)}"
        tell(f"{self.max_epochs} epochs on {_name(data)} {how}")
        losses = train_inside(
            trainer,
            learner,
            data,
            max_epochs=self.max_epochs,
            seed=self.seed,
            callbacks=like_those_of(trainer),
        )
        network = learned.network if learned.network is not None else learner
        prefix = f"{learned.name}." if learned.name else ""
        tensors = chain(network.named_parameters(), network.named_buffers())
        learned.values = {prefix + name: value.detach().cpu() for name, value in tensors}
        learned.record |= {
            "kind": "supervised" if self.objective is None else _kind(learner),
            "data": _name(data),
            "epochs": len(losses.train),
            "kept": losses.kept,
            "train": losses.train,
            "validation": losses.validation,
        }
        return learned


@dataclass
class _Learned:
    """What is trained and how, and then what came of it."""

    module: L.LightningModule
    record: dict[str, Any]
    values: dict[str, Tensor] = field(default_factory=dict)
    data: L.LightningDataModule | None = None
    learner: L.LightningModule | None = None
    network: nn.Module | None = None
    name: str = ""


def _kind(learner: L.LightningModule) -> str:
    return str(getattr(learner, "objective", type(learner).__name__))


def _name(data: L.LightningDataModule) -> str:
    return data.name or type(data).__name__
