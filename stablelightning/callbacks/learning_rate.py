"""A learning rate found by trying, before training: a sweep and short runs, or halving."""

import math
from typing import Any

import torch

from stablelightning.callbacks.rate_choice import (
    UNTRAINED_STEPS,
    ChoosesLearningRate,
    plain,
)
from stablelightning.callbacks.rate_trials import Trials
from stablelightning.callbacks.rehearsal import Rehearsal
from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.functional.learning_rate import (
    divergence,
    log_spaced_rates,
    longest_valley,
    smoothed_losses,
    valley_rate,
)

#: A sweep of fewer steps passes the good rates without a second look.
_FEWEST_STEPS = 2 * UNTRAINED_STEPS


class FindLearningRate(ChoosesLearningRate):
    """Find a learning rate before training: a sweep, and short runs that confirm it.

    When training starts, the module trains for ``steps`` steps while the rate rises from
    ``lowest`` to ``highest`` by equal factors, until the loss diverges. The smoothed loss falls
    along a valley; two thirds into the longest one is where to look. From there, runs of
    ``confirm_steps`` steps at that rate and a third of it, and on by factors of three in the
    direction that is better, begin at the same weights and see the same batches. The smallest rate
    is taken whose loss at the end is as low as that of the best run, to 2 % of what that one fell.

    A step is the module's own, under the Trainer's precision, strategy, accumulation and clipping.
    Afterwards everything is as before, to the bit: parameters, buffers, optimizer, scaler,
    counters, generators, the order of the data. Other callbacks see nothing of it, and nothing is
    logged but what was found: ``learning_rate/suggested``, ``learning_rate/diverged_at``, and to
    W&B the picture ``learning_rate/trials``.

    The found rate is that of the parameter group with the largest; all others keep their ratio to
    it. Schedules go on as they are, at the new level: a warm-up leads up to it, and of
    ``OneCycleLR`` it is the peak.

    Args:
        lowest: first rate of the sweep, > 0.
        highest: last rate, > ``lowest``.
        steps: optimizer steps of the sweep, >= 20.
        confirm_steps: of each confirming run; 0 takes the valley's rate as it is.
        apply: set the rate; ``False`` only looks, tells, and warns if the present rate diverges.
        required: raise where rates cannot be tried (manual optimization, a sharded model, data that
            can be read once); ``False`` says so in a warning, and leaves the rate.

    Attributes:
        suggested: the rate that was found; ``None`` where the loss fell nowhere.
        diverged_at: the rate of the sweep at which the loss broke; ``None`` if it did not.
        history: ``rates``, ``losses`` and ``smoothed`` of the sweep, ``valley`` (its two ends),
            ``runs`` (``rate``, ``losses``, ``score``, ``stable`` of each), in plain types.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: rates cannot be tried, and ``required``.
        DataError: the training data can be read only once, and ``required``.

    Source:
        Smith 2015, arXiv:1506.01186, section 3.3 (the sweep); the valley is an idea of fastai's.

    Example:
        >>> import lightning as L
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from stablelightning.module import StableModule
        >>> x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> data = DataLoader(TensorDataset(x, x.sum(1)), batch_size=32)
        >>> model = StableModule(torch.nn.Linear(4, 1), task="regression")
        >>> find = FindLearningRate(steps=60, confirm_steps=20)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[find],
        ... )
        >>> trainer.fit(model, data)
        >>> find.suggested == trainer.optimizers[0].param_groups[0]["lr"]
        True
    """

    def __init__(
        self,
        lowest: float = 1e-7,
        *,
        highest: float = 10.0,
        steps: int = 100,
        confirm_steps: int = 100,
        apply: bool = True,
        required: bool = True,
    ) -> None:
        super().__init__(apply=apply, required=required)
        if not isinstance(steps, int) or steps < _FEWEST_STEPS:
            raise RecipeError(f"steps must be a whole number >= {_FEWEST_STEPS}, got {steps!r}.")
        if confirm_steps != 0:
            check_whole("confirm_steps", confirm_steps, least=1)
        log_spaced_rates(lowest, highest, steps=steps)  # says what is wrong with them
        self.lowest = lowest
        self.highest = highest
        self.steps = steps
        self.confirm_steps = confirm_steps

    def choose(self, rehearsal: Rehearsal) -> dict[str, Any]:
        """Sweep, read the valley, and confirm."""
        found = self._sweep(rehearsal)
        if found["suggested"] is not None and self.confirm_steps:
            trials = Trials(rehearsal, steps=self.confirm_steps)
            found["suggested"] = trials.around(found["suggested"], below=found["diverged_at"])
            found["runs"] = trials.to_list()
            found["reason"] = f"{trials.words}; {found['reason']}"
        return found

    def _sweep(self, rehearsal: Rehearsal) -> dict[str, Any]:
        rates = log_spaced_rates(self.lowest, self.highest, steps=self.steps)
        steps = rehearsal.run(rates.tolist(), until=_breaks)
        rates = torch.tensor([rate for rate, _ in steps], dtype=torch.float64)
        losses = torch.tensor([loss for _, loss in steps], dtype=torch.float64)
        end = divergence(losses, losses[:UNTRAINED_STEPS])
        smooth = smoothed_losses(losses)
        valley, suggested = longest_valley(smooth[:end]), valley_rate(rates[:end], smooth[:end])
        found: dict[str, Any] = {
            "rule": "valley",
            "rates": rates.tolist(),
            "losses": plain(losses.tolist()),
            "smoothed": plain(smooth.tolist()),
            "valley": None if valley is None else [float(rates[place]) for place in valley],
            "suggested": suggested,
            "diverged_at": None if end is None else float(rates[end]),
            "runs": [],
        }
        found["reason"] = _words(found)
        return found


class HalveLearningRate(ChoosesLearningRate):
    """Begin small, and halve the learning rate until the loss stays finite.

    The plain rule, where a sweep is too much. When training starts, the module trains for ``steps``
    steps at ``start``. While the loss becomes infinite or NaN on the way, or rises far above that
    of the untrained model, the rate is halved and the run begins again from the same weights.
    Nothing of these runs is left, as with :class:`FindLearningRate`, and schedules go on at the
    rate that held.

    Logged: ``learning_rate/suggested``, ``learning_rate/diverged_at``, and to W&B the picture
    ``learning_rate/trials``.

    Args:
        start: the first rate, > 0; of the parameter group with the largest, others in proportion.
        steps: optimizer steps of each run, >= 1.
        halvings: at most so many, >= 1.
        required: raise where rates cannot be tried; ``False`` says so in a warning, and leaves the
            rate.

    Attributes:
        suggested: the rate that held; ``None`` where none did.
        diverged_at: the smallest rate that did not hold; ``None`` where the first did.
        history: ``runs`` (``rate``, ``losses``, ``score``, ``stable`` of each), in plain types.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: rates cannot be tried, and ``required``.
        DataError: the training data can be read only once, and ``required``.

    Source:
        Bengio 2012, arXiv:1206.5533, section 3.1.1 (a rate that is too large by little makes the
        loss grow; divide it until it does not).

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> halve = HalveLearningRate(start=0.003, steps=20)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[halve],
        ... )
        >>> trainer.fit(BoringModel())
        >>> halve.suggested
        0.003
    """

    def __init__(
        self, start: float = 0.003, *, steps: int = 100, halvings: int = 20, required: bool = True
    ) -> None:
        super().__init__(apply=True, required=required)
        if (
            isinstance(start, bool)
            or not isinstance(start, int | float)
            or not 0 < start < math.inf
        ):
            raise RecipeError(f"start must be a finite rate > 0, got {start!r}; 0.003 is usual.")
        check_whole("steps", steps, least=1)
        check_whole("halvings", halvings, least=1)
        self.start = start
        self.steps = steps
        self.halvings = halvings

    def choose(self, rehearsal: Rehearsal) -> dict[str, Any]:
        """Halve until a run holds."""
        trials = Trials(rehearsal, steps=self.steps)
        suggested = trials.halved(self.start, halvings=self.halvings)
        broken = [run.rate for run in trials.runs if not run.stable]
        return {
            "rule": "halving",
            "suggested": suggested,
            "diverged_at": min(broken, default=None),
            "runs": trials.to_list(),
            "reason": trials.words,
        }


def _breaks(losses: list[float]) -> bool:
    values = torch.tensor(losses, dtype=torch.float64)
    return divergence(values, values[:UNTRAINED_STEPS]) is not None


def _words(found: dict[str, Any]) -> str:
    diverged = found["diverged_at"]
    broke = "did not diverge" if diverged is None else f"diverged at {diverged:.2g}"
    if found["suggested"] is None:
        return f"the loss of the sweep fell at no rate, and {broke}"
    low, high = found["valley"]
    return f"the loss of the sweep fell at rates of {low:.2g} to {high:.2g}, and {broke}"
