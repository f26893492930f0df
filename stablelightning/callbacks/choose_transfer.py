"""A plan of fine-tuning chosen by measurement: how many layers to keep, how many groups to open."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from stablelightning.callbacks.agreement import anyones_failure
from stablelightning.callbacks.contestant import unlogged
from stablelightning.callbacks.freeze_base import Freezing, Position
from stablelightning.callbacks.labelled_rows import LabelledRows
from stablelightning.callbacks.transfer_race import race_plans
from stablelightning.checks import check_whole
from stablelightning.errors import (
    DataError,
    RecipeError,
    StableLightningError,
    StableLightningWarning,
)
from stablelightning.functional.freeze import gradually_open
from stablelightning.model.depth import DepthGroup
from stablelightning.model.generators import preserved_generators, undisturbed_generators
from stablelightning.model.probe import ROWS, ProbeProfile, probe_by_depth
from stablelightning.model.redraw import redraw
from stablelightning.model.transfer_choice import TransferChoice, choose_transfer, labels_for_each
from stablelightning.report.transfer import probe_curve
from stablelightning.report.wandb import log_figure, log_table
from stablelightning.words import reason_of

#: What a module remembers, so that a second ``fit`` does not draw anew what was trained since.
_MARK = "_stable_transfer"
#: A dry run races for so many steps.
_DRY_STEPS = 2


class ChooseTransfer(Freezing):
    """Measure how near a pretrained network is to its new task, and fine-tune it accordingly.

    When training starts, up to ``rows`` training rows go through the network once, in eval; linear
    probes tell how well the task can be read at each depth
    (:func:`~stablelightning.model.probe.probe_by_depth`). With the number of labels for each class
    that decides (:func:`~stablelightning.model.transfer_choice.choose_transfer`): which groups are
    kept, which upper ones are drawn anew because they lost what this task needs, and how many are
    opened, after the head has been alone for a tenth of the training, or from the start. With few
    labels a near task opens the upper groups only, at a tenth of the head's rate; with a hundred
    labels for each class everything is opened, at rates that fall with the distance to the head; so
    is it, with fewer layers kept and at the full rate, where the task is far.

    Works around any LightningModule whose batches give labels, or numbers to predict. Where they
    give neither, or what a group reads cannot be seen, that is said, and one group is opened each
    epoch as by :class:`~stablelightning.callbacks.freeze.UnfreezeGradually`; so it is where the end
    of the training is not known, up to the number that was chosen.

    The choice is made once: every process probes, the first one's choice counts, and it is kept in
    checkpoints with its reason. A run that goes on from one neither probes nor draws. Loaders,
    generators, flags and buffers are as they were. All else is as with every plan
    (:class:`~stablelightning.callbacks.freeze_base.Freezing`).

    Logged, beside ``unfreeze/open_groups`` and ``unfreeze/trainable_parameters``:
    ``unfreeze/keep_layers``, ``unfreeze/chosen_groups`` and ``unfreeze/probe/<group>`` (what can be
    read before that group) when training starts; to W&B also the reason and the curve of probes.

    Args:
        rows: training rows that are probed at most, >= 4.
        race: also let the chosen plan run against the head alone, gradual unfreezing, everything at
            once, everything slowly, and half of the layers, on copies, from two seeds; the loss is
            read on validation data, and the rule's plan stays unless another is better by more than
            the noise.
        steps: optimizer steps of each run of a race, >= 1.
        groups: names of modules, or lists of them, from input to output, in the place of groups
            that are found (:func:`~stablelightning.model.depth.depth_groups`).
        layer_decay: factor on the rate for each group that is further from the output, in (0, 1],
            in the place of the choice.
        exclude: dotted names of modules and parameters that are left as they are; ``None`` for
            none.

    Attributes:
        choice: a :class:`~stablelightning.model.transfer_choice.TransferChoice`; ``None`` where
            none could be made, and before training.
        profile: the probes, as a :class:`~stablelightning.model.probe.ProbeProfile`, or ``None``.
        raced: plans of the race with their losses, in plain types, the best first.
        reason: why, in words.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model, or promises DDP
            the same graph in every step; there are two plans.
        ModelError: the LightningModule is compiled as a whole.

    Source:
        Yosinski et al. 2014, arXiv:1411.1792; Alain, Bengio 2016, arXiv:1610.01644; Kumar et al.
        2022, arXiv:2202.10054.

    Example:
        >>> from stablelightning.data import DigitsData
        >>> from stablelightning.module import StableModule
        >>> from stablelightning.nn import MLP
        >>> model = StableModule(MLP(64, 8, hidden=[16]), task="classification")
        >>> choose = ChooseTransfer(rows=200)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[choose],
        ... )
        >>> trainer.fit(model, DigitsData())
        >>> choose.choice.groups, choose.choice.keep_layers, choose.choice.open_groups
        (2, 1, 2)
    """

    def __init__(
        self,
        *,
        rows: int = ROWS,
        race: bool = False,
        steps: int = 60,
        groups: list[str | list[str]] | None = None,
        layer_decay: float | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(groups=groups, layer_decay=layer_decay, rates=None, exclude=exclude)
        check_whole("rows", rows, least=4)
        check_whole("steps", steps, least=1)
        if not isinstance(race, bool):
            raise RecipeError(f"race must be true or false, got {race!r}.")
        self.rows = rows
        self.race = race
        self.steps = steps
        self.choice: TransferChoice | None = None
        self.profile: ProbeProfile | None = None
        self.raced: list[dict[str, Any]] = []
        self.reason = ""

    # ---- the plan ---------------------------------------------------------------------------

    def open_groups(self, position: Position) -> int:
        """What was chosen; without a choice one more each epoch."""
        gradual = gradually_open(position.epoch, every=1, groups=position.groups)
        if self.choice is None:
            return gradual
        if math.isinf(position.epochs) and math.isinf(position.steps) and not self.choice.at_once:
            return min(gradual, self.choice.open_groups)
        return self.choice.open_at(position.share)

    def factors(self, groups: int) -> list[float] | None:
        """The user's rates, else those that were chosen."""
        if self.layer_decay is not None or self.choice is None:
            return super().factors(groups)
        return self.choice.factors()

    def prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose, and draw anew what shall be; once for each model, which then has been trained."""
        if self.choice is not None and _has_mark(pl_module, self.found):
            return
        failure: Exception | None = None
        self.choice, self.profile, self.raced = None, None, []
        if len(self.found) == 1:
            self.reason = "there is a single group, and nothing to choose"
            return
        with undisturbed_generators():
            try:
                self._choose(trainer, pl_module)
            except Exception as error:  # whatever a forward or a dataset of the user's raises
                failure = error
            failure = anyones_failure(trainer, failure)
        if failure is not None:
            return self._fall_back(failure)
        self._agree(trainer)
        self._redraw(trainer, pl_module)
        rank_zero_info(f"{type(self).__name__}: {self.choice}")
        if not trainer.barebones:
            self._log(trainer)

    def _choose(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.limit_train_batches == 0:
            raise DataError("there is nothing to train on (limit_train_batches=0)")
        data = LabelledRows(trainer, pl_module, self.rows)
        with trainer.precision_plugin.forward_context(), unlogged(trainer):
            profile = probe_by_depth(
                pl_module,
                data.pairs(),
                groups=self.found,
                task=getattr(pl_module, "task", None),
                rows=self.rows,
            )
        total = profile.rows if data.total is None else data.total
        self.choice = choose_transfer(profile, labels_for_each(profile, max(total, profile.rows)))
        self.profile = profile
        if self.race:
            self.choice = self._race(trainer, pl_module, self.choice, _example(data))
        self.reason = str(self.choice)

    def _race(
        self, trainer: L.Trainer, pl_module: L.LightningModule, choice: TransferChoice, example: Any
    ) -> TransferChoice:
        dry = bool(getattr(trainer, "fast_dev_run", 0))
        steps = _DRY_STEPS if dry else self.steps
        try:
            won, raced = race_plans(
                trainer, pl_module, self.found, choice, steps=steps, example=example
            )
        except (StableLightningError, RuntimeError, TypeError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            rank_zero_warn(
                f"{type(self).__name__} keeps the plan of the rule, since no race could be run: "
                f"{said}",
                category=StableLightningWarning,
            )
            return choice
        self.raced = [plan.to_dict() for plan in raced]
        return won

    def _agree(self, trainer: L.Trainer) -> None:
        """What the first process chose counts: sums differ in the last digit between devices."""
        if trainer.world_size > 1:
            self._take(trainer.strategy.broadcast(self._kept()))

    def _redraw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trained = _has_mark(pl_module, self.found)
        vars(pl_module)[_MARK] = [group.name for group in self.found]
        if self.choice is None or not self.choice.redraws or trained:
            return
        # Another seed of the user's draws other weights, and every process the same ones.
        with undisturbed_generators():
            seed = int(trainer.strategy.broadcast(int(torch.randint(2**31, ()))))
            example = _example(LabelledRows(trainer, pl_module, self.rows))
            upper = self.found[self.choice.keep_layers : -1]
            with preserved_generators(seed), unlogged(trainer):
                try:
                    redraw(pl_module, upper, example=example)
                except DataError:  # a forward that no example fits alone; torch's own draws remain
                    torch.manual_seed(seed)
                    redraw(pl_module, upper)

    def _fall_back(self, failure: Exception) -> None:
        self.choice, self.profile, self.raced = None, None, []
        said = reason_of(failure)
        self.reason = f"nothing could be probed ({said}), so one group more is opened each epoch"
        rank_zero_warn(f"{type(self).__name__}: {self.reason}.", category=StableLightningWarning)

    def _log(self, trainer: L.Trainer) -> None:
        if self.choice is None or self.profile is None:
            return
        numbers = {
            "unfreeze/keep_layers": float(self.choice.keep_layers),
            "unfreeze/chosen_groups": float(self.choice.open_groups),
        }
        for name, score in zip(self.profile.groups, self.profile.scores, strict=True):
            if score is not None:
                numbers[f"unfreeze/probe/{name}"] = score.value
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=0)
        if trainer.loggers:
            table = [[self.choice.plan, self.choice.reason]]
            log_table(trainer.loggers, "unfreeze/choice", ["plan", "reason"], table)
            log_figure(trainer.loggers, "unfreeze/probes", probe_curve(self.profile, self.choice))

    # ---- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The choice and its evidence beside what every plan keeps, in plain types."""
        return super().state_dict() | {"transfer": self._kept()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was chosen; a test of a checkpoint forgets nothing of training."""
        super().load_state_dict(state_dict)
        if self.goes_on:
            self._take(state_dict["transfer"])

    def _kept(self) -> dict[str, Any]:
        return {
            "choice": None if self.choice is None else self.choice.to_dict(),
            "profile": None if self.profile is None else self.profile.to_dict(),
            "raced": self.raced,
            "reason": self.reason,
        }

    def _take(self, kept: dict[str, Any]) -> None:
        choice, profile = kept["choice"], kept["profile"]
        self.choice = None if choice is None else TransferChoice(**choice)
        self.profile = None if profile is None else ProbeProfile.from_dict(profile)
        self.raced, self.reason = list(kept["raced"]), kept["reason"]


def _has_mark(pl_module: L.LightningModule, found: list[DepthGroup]) -> bool:
    return vars(pl_module).get(_MARK) == [group.name for group in found]


def _example(data: LabelledRows) -> Any:
    """Inputs of the first batch that is probed."""
    return next(iter(data.pairs()))[0]
