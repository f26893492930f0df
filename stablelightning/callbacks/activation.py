"""An activation chosen by measurement, before training, around any LightningModule."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from stablelightning.callbacks.agreement import anyones_failure
from stablelightning.callbacks.before import ChangesStructure, first_member
from stablelightning.callbacks.candidates import Candidates
from stablelightning.callbacks.contestant import loop_left_alone
from stablelightning.callbacks.race_data import race_data
from stablelightning.callbacks.resume import checkpoint_to_load
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.checks import check_whole
from stablelightning.errors import (
    RecipeError,
    StableLightningWarning,
)
from stablelightning.model.activation_names import activation_choice
from stablelightning.model.activation_ranking import COLUMNS, ActivationRanking
from stablelightning.model.activation_selection import (
    CANDIDATES,
    RaceData,
    RaceSettings,
    select_activation,
)
from stablelightning.model.generators import undisturbed_generators
from stablelightning.report.activation import race_figure
from stablelightning.report.wandb import log_figure, log_table

#: What a module remembers of a choice, so that a second ``fit`` does not race on trained weights.
_MARK = "_stable_activation"


class SelectActivation(ChangesStructure):
    """Measure which activation suits the model and its data, and swap it in before training.

    In ``setup``, before there is an optimizer. Each candidate is swapped into a copy of the module,
    which is initialized anew (:func:`stablelightning.initialize`) and watched for one training
    step: how signal and gradient change over depth, which units are dead or saturated, how far the
    activations are from being centred. Those that would lose the signal are out. The best of the
    others, and the activation in use, race: ``steps`` optimizer steps with the module's own
    ``training_step`` and ``configure_optimizers``, from equal seeds, on equal batches of the
    training data; the loss is read in eval on batches that are held out. The one in use stays
    unless another is better by more than the noise between seeds.

    The winner is swapped into the module, whose fresh weights are drawn as those that raced were,
    or by an :class:`~stablelightning.callbacks.initialize.InitializeWeights` of the same run.
    Weights that were loaded, flags, loaders and random number generators are as they were. With a
    single candidate nothing is measured and nothing drawn: it is swapped in.

    The choice is part of the model from then on: it is kept in checkpoints, and a run that goes on
    from one, or tests or predicts with one, does not race again, but changes the new model in the
    same way before weights are loaded. With several processes all race, and the first decides.

    Logged when training starts: ``activation/loss/<name>``, ``activation/ms_per_step/<name>`` and
    ``activation/steps_to_target/<name>`` (steps until the loss at which the activation in use
    ended) of those that raced; to W&B also the whole evidence as the table ``activation/ranking``
    and the curves as ``activation/race``.

    Args:
        candidates: names as :func:`stablelightning.swap_activations` takes them; ``None`` for
            ReLU, three leaky slopes, ELU, SELU, GELU, SiLU and tanh.
        steps: optimizer steps of each run, >= 1.
        seeds: runs of each candidate, >= 1.
        finalists: candidates that race beside the activation in use, >= 1.
        seed: the first of the seeds, >= 0.
        required: raise where no choice can be made (nothing to swap, a step that cannot be run
            alone); ``False`` says so in a warning, and leaves the model.

    Attributes:
        chosen: name of the activation that the model has now; ``None`` before a choice.
        evidence: the ranking as plain types, see
            :meth:`~stablelightning.model.activation_ranking.ActivationRanking.to_dict`; empty where
            nothing was measured.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model.
        ModelError: nothing can be swapped or raced, and ``required``.
        DataError: there is no training data.

    Source:
        Klambauer et al. 2017, arXiv:1706.02515, and Ramachandran et al. 2017, arXiv:1710.05941, for
        how much the choice depends on depth and data.

    Example:
        >>> from torch import nn
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> model = BoringModel()
        >>> model.layer = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> select = SelectActivation(["elu", "tanh"], steps=5, seeds=2)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[select],
        ... )
        >>> trainer.fit(model)
        >>> select.chosen in ("relu", "elu", "tanh"), len(select.evidence["rows"])
        (True, 3)
    """

    def __init__(
        self,
        candidates: Sequence[str] | None = None,
        *,
        steps: int = 100,
        seeds: int = 3,
        finalists: int = 4,
        seed: int = 0,
        required: bool = True,
    ) -> None:
        super().__init__()
        _check_settings(candidates, steps=steps, seeds=seeds, finalists=finalists, seed=seed)
        self.candidates = candidates
        self.steps = steps
        self.seeds = seeds
        self.finalists = finalists
        self.seed = seed
        self.required = required
        self.chosen: str | None = None
        self.evidence: dict[str, Any] = {}
        self._untold = False

    # ---- when -------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose, or prepare for the checkpoint that will be loaded."""
        super().setup(trainer, pl_module, stage)
        if checkpoint_to_load(trainer):
            self.repeat_before_loading(pl_module)
        elif stage == "fit" and trainer.limit_train_batches != 0 and _MARK not in vars(pl_module):
            _refuse_sharded(trainer)
            self.when_the_model_is_there(trainer, pl_module, self._choose)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the evidence."""
        self.leave()
        if self._untold and not trainer.barebones:
            _log(trainer, self.evidence)
        self._untold = False

    # ---- a checkpoint -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The choice and its evidence, in plain types."""
        return {"chosen": self.chosen, "evidence": self.evidence}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what another run found."""
        self.chosen, self.evidence = state_dict["chosen"], state_dict["evidence"]

    def repeated(self, pl_module: L.LightningModule) -> None:
        """The choice of the checkpoint stands; nothing is raced again."""
        vars(pl_module)[_MARK] = True

    # ---- the choice -------------------------------------------------------------------------

    def _choose(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with first_member(pl_module):
            self._choose_for(trainer, pl_module)

    def _choose_for(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        failure: Exception | None = None
        chosen = _choices(self.candidates)[0]
        with undisturbed_generators(), loop_left_alone(trainer):
            try:
                data = race_data(trainer, pl_module, self.steps if self._races else 1)
                candidates = Candidates(trainer, pl_module, data.batches[0])
                if self._races:  # what stands against any race is said at once
                    candidates.build(candidates.incumbent)
            except Exception as error:  # a user's configure_optimizers may raise anything
                failure = error
            failure = anyones_failure(trainer, failure)
            if failure is not None:
                return self._give_up(failure)
            if self._races:
                ranking = self._race(trainer, candidates, data)
                chosen = ranking.chosen
                self.evidence, self._untold = ranking.to_dict(), True
                rank_zero_info(f"Activations, measured:\n{ranking}")
            torch.manual_seed(self.seed)  # what is drawn below, on every process the same
            if chosen != candidates.incumbent or (candidates.mixed and not self._races):
                rank_zero_info(f"Activations, swapped:\n{candidates.swap(chosen)}")
            if self._races:  # what trains is what was measured
                candidates.initialize_as_raced()
        self.chosen = chosen
        vars(pl_module)[_MARK] = True

    @property
    def _races(self) -> bool:
        return len(_choices(self.candidates)) > 1

    def _give_up(self, failure: Exception) -> None:
        if self.required:
            raise failure
        message = f"SelectActivation leaves the model as it is: {failure}"
        rank_zero_warn(message, category=StableLightningWarning)

    def _race(
        self, trainer: L.Trainer, candidates: Candidates, data: RaceData
    ) -> ActivationRanking:
        short = bool(getattr(trainer, "fast_dev_run", 0))
        settings = RaceSettings(
            steps=min(self.steps, 2) if short else self.steps,
            seeds=1 if short else self.seeds,
            finalists=self.finalists,
            seed=self.seed,
        )
        first = candidates.incumbent
        names = [first, *(name for name in _choices(self.candidates) if name != first)]
        agree = trainer.strategy.broadcast
        return select_activation(candidates.build, names, data, settings, agree=agree)


def _choices(candidates: Sequence[str] | None) -> list[str]:
    wanted = CANDIDATES if candidates is None else candidates
    return list(dict.fromkeys(activation_choice(name).name for name in wanted))


def _log(trainer: L.Trainer, evidence: dict[str, Any]) -> None:
    numbers: dict[str, float] = {}
    for row in evidence["rows"]:
        cells = dict(zip(COLUMNS, row, strict=True))
        for column in ("loss", "ms per step", "steps to target"):
            if cells[column] is not None:
                key = f"activation/{column.replace(' ', '_')}/{cells['activation']}"
                numbers[key] = float(cells[column])
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=0)
    if trainer.loggers:
        log_table(trainer.loggers, "activation/ranking", evidence["columns"], evidence["rows"])
        log_figure(trainer.loggers, "activation/race", race_figure(evidence))


def _refuse_sharded(trainer: L.Trainer) -> None:
    refuse_shards(
        trainer,
        needs="SelectActivation needs the whole model",
        remedy="choose on one device, and write the choice down",
    )


def _check_settings(candidates: Any, **numbers: int) -> None:
    least = {"seed": 0}
    for name, value in numbers.items():
        low = least.get(name, 1)
        check_whole(name, value, least=low)
    if candidates is None:
        return
    if isinstance(candidates, str) or not candidates:
        raise RecipeError(
            f"candidates must be a list of activations, got {candidates!r}; such as [relu, selu]."
        )
    for name in candidates:
        activation_choice(name)
