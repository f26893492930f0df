"""What is fitted to the validation data when training is over, and kept in the checkpoint."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from stablelightning.calibration.base import Calibrator
from stablelightning.callbacks.agreement import anyones_failure, told_by_first
from stablelightning.callbacks.corrections import Correction, chain_of
from stablelightning.callbacks.dealing import deal
from stablelightning.callbacks.kept_weights import best_weights, fingerprint, keep_in_checkpoints
from stablelightning.callbacks.plain import estimate_of, plain_estimate
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.callbacks.uncertainty import EstimateUncertainty, gives_features
from stablelightning.callbacks.validation_rows import (
    LabelledPredictions,
    count_validation_rows,
    gathered,
    predict_validation,
)
from stablelightning.errors import (
    CheckpointError,
    DataError,
    StableLightningError,
    StableLightningWarning,
)
from stablelightning.model.prediction import Prediction, Task
from stablelightning.words import reason_of

#: Rows after which it can be said that a test is run on the rows of the fit: one row of a data set
#: may well stand in it twice.
_ENOUGH_ROWS = 8


class FittedAfterTraining(Correction):
    """Base of the callbacks that learn from the validation data how to correct predictions.

    **When training is over** the validation data (of the first dataloader) is predicted once for
    all such callbacks of the Trainer, with the weights of the best checkpoint (the module's, where
    none is kept), by the Trainer's ``EstimateUncertainty`` and so with its samples, or plainly
    without one. The rows of all processes are dealt out in disjoint parts, one for each callback,
    stratified by the target. In the order of their rank each is fitted to its own part, as those
    before it correct it.

    What was learned is kept in the callback and, with a fingerprint of the weights, in the
    checkpoint files that hold them: a later process that tests or predicts from the checkpoint has
    it. **In a test or a prediction** it is applied to every batch; other weights than those that it
    was fitted to, and the rows that it was fitted on, are refused.

    **What cannot be fitted** (one class only, a risk that no threshold reaches) loses nothing: a
    warning says why, what the others have learned is kept, and the checkpoint remembers the reason,
    with which this callback then leaves predictions as they are.

    A subclass says its ``rank`` and makes its calibrator.

    Args:
        seed: >= 0, of how the rows are dealt out; the first such callback of a Trainer decides.
        required: whether it is an error that there is too little to fit it to, before training, or
            that it was fitted to other weights; ``False`` says so in a warning, and leaves
            predictions as they are.

    Attributes:
        calibrator: what was fitted; ``None`` before.
        rows_fitted: number of validation rows that it was fitted to.
        unfitted: why nothing could be fitted; empty where it could.
    """

    rank: ClassVar[int]

    def __init__(self, *, seed: int = 0, required: bool = True) -> None:
        self.seed = seed
        self.required = required
        self.calibrator: Calibrator | None = None
        self.rows_fitted = 0
        self.unfitted = ""
        self._weights = ""
        self._after: list[str] = []  # the corrections that came before it when it was fitted
        self._task: Task | None = None
        self._aside = False
        self._again = self._counted = 0
        self._fellows: list[Calibrator] = []  # of the whole chain, itself included, in a loop
        self._host: EstimateUncertainty | None = None

    @abstractmethod
    def make_calibrator(self, task: Task) -> Calibrator:
        """A fresh calibrator.

        Args:
            task: of the predictions.

        Raises:
            ModelError: there is none for such a task.
        """

    @property
    def least_rows(self) -> int:
        """The fewest validation rows that it can be fitted to, for a refusal before training."""
        return 2

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return type(self).__name__

    # ---- before training --------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse before training what could not be fitted after it; predict plainly if no one else.

        Raises:
            DataError: there is no validation data, or there are too few rows for all.
            RecipeError: the strategy shards the model.
        """
        super().setup(trainer, pl_module, stage)
        _put_last(trainer)
        self._aside = False
        if stage == "fit":
            self._forget()
            with_features = gives_features(pl_module)
            if not with_features and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._or_step_aside(lambda: self._check_before(trainer))
        elif stage in ("test", "predict") and estimate_of(trainer) is None:
            self._host = plain_estimate(trainer, pl_module)

    def _check_before(self, trainer: L.Trainer) -> None:
        refuse_shards(
            trainer,
            needs=f"{self.name} needs the whole model",
            remedy="use strategy='ddp' or one device",
        )
        chain = _fitted(trainer)
        rows = count_validation_rows(trainer)
        needed = len(chain) * max(callback.least_rows for callback in chain)
        if rows is not None and rows < needed:
            shared = f" ({len(chain)} callbacks share them in equal parts)" * (len(chain) > 1)
            raise DataError(
                f"{self.name} needs {needed} validation rows or more{shared}, got {rows}; give "
                "more, or remove it."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what a checkpoint from which training goes on had: its weights will be others."""
        self._forget()

    # ---- after training ---------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first of them fits all."""
        chain = _fitted(trainer)
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self is not chain[0] or dry or gives_features(pl_module):
            return
        chain = [callback for callback in chain if not callback._aside]
        if chain:
            _fit_all(chain, trainer, pl_module)

    def _fit(self, part: LabelledPredictions, weights: str, before: list[Correction]) -> None:
        task = part.prediction.task
        calibrator = self.make_calibrator(task)
        calibrator.fit(part.prediction, part.target, rows=part.keys)
        self.calibrator, self._task = calibrator, task
        self.rows_fitted, self._weights = len(part), weights
        self._after = [callback.state_key for callback in before]

    # ---- in a test or a prediction ----------------------------------------------------------

    def usable(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether it was fitted to these very weights.

        Raises:
            CheckpointError: it was not, and is required.
        """
        self._again = self._counted = 0
        found = [callback.calibrator for callback in _fitted(trainer)]
        self._fellows = [calibrator for calibrator in found if calibrator is not None]
        if trainer.fast_dev_run or gives_features(pl_module):  # type: ignore[attr-defined]
            return False
        if self.unfitted:
            self._step_aside(self.unfitted)
            return False
        return self._or_step_aside(lambda: self._check_weights(trainer, pl_module))

    def _check_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.calibrator is None:
            raise CheckpointError(
                f"{self.name} must be fitted before it can correct predictions, and it is not; "
                "train with it in the Trainer, or give ckpt_path= a checkpoint of such a training."
            )
        if told_by_first(trainer, fingerprint(pl_module)) != self._weights:
            raise CheckpointError(
                f"{self.name} was fitted to other weights than those of the model now; test and "
                "predict with ckpt_path='best', or with the path of that checkpoint."
            )
        chain = chain_of(trainer)
        before = [callback.state_key for callback in chain[: chain.index(self)]]
        if before != self._after:
            raise CheckpointError(
                f"{self.name} was fitted to predictions as {_listed(self._after)} left them, and "
                f"now {_listed(before)} come before it; keep the callbacks of the training."
            )

    def correct(self, prediction: Prediction, keys: Tensor | None) -> Prediction:
        """Correct the prediction of a batch.

        Raises:
            DataError: most of the rows until now are those that it, and those beside it, were
                fitted on.
        """
        assert self.calibrator is not None
        if keys is not None:
            # Each was fitted to a part of the rows; together they have seen all of them.
            known = [fellow.knows(keys) for fellow in self._fellows or [self.calibrator]]
            self._again += int(torch.stack(known).any(0).sum())
            self._counted += len(keys)
            if self._counted >= _ENOUGH_ROWS and 2 * self._again > self._counted:
                raise DataError(
                    f"{self.name} must not be judged by the rows that it was fitted on, got "
                    f"{self._again} of them in {self._counted}; test on data of its own."
                )
        # Whether the rows were seen has been counted over all batches.
        return self.calibrator.applied(prediction, keys)

    def _or_step_aside(self, check: Any) -> bool:
        try:
            check()
        except StableLightningError as error:
            if self.required:
                raise
            self._step_aside(error)
            return False
        return True

    def _step_aside(self, reason: object) -> None:
        self._aside = True
        rank_zero_warn(f"{self.name} steps aside: {reason}", category=StableLightningWarning)

    def _could_not(self, error: Exception) -> None:
        """Training is over: what it has taken hours to learn must not end in an error of ours."""
        self._forget()
        self.unfitted = reason_of(error)
        rank_zero_warn(
            f"{self.name} could not be fitted, and leaves predictions as they are: {error}",
            category=StableLightningWarning,
        )

    def leave(self) -> None:
        """Take the plain estimate out of the Trainer, if one was put there."""
        self._host = None
        self._fellows = []

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the Trainer's callbacks as they were."""
        if self._host is not None:
            everything: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
            kept = [callback for callback in everything if callback is not self._host]
            trainer.callbacks = kept  # type: ignore[attr-defined]
        super().teardown(trainer, pl_module, stage)

    # ---- state ------------------------------------------------------------------------------

    def _forget(self) -> None:
        self.calibrator, self._task = None, None
        self.rows_fitted, self.unfitted, self._weights, self._after = 0, "", "", []

    def state_dict(self) -> dict[str, Any]:
        """What was fitted, and to which weights, or why nothing was; empty before."""
        if self.unfitted:
            return {"unfitted": self.unfitted}
        if self.calibrator is None:
            return {}
        return {
            "calibrator": self.calibrator.state_dict(),
            "task": self._task,
            "rows": self.rows_fitted,
            "weights": self._weights,
            "after": list(self._after),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was fitted; a training that goes on will fit anew."""
        if not state_dict:
            return
        self._forget()
        self.unfitted = state_dict.get("unfitted", "")
        if self.unfitted:
            return
        self._task = state_dict["task"]
        calibrator = self.make_calibrator(state_dict["task"])
        calibrator.load_state_dict(state_dict["calibrator"])
        self.calibrator = calibrator
        self.rows_fitted, self._weights = state_dict["rows"], state_dict["weights"]
        self._after = list(state_dict["after"])


def _fit_all(
    chain: list[FittedAfterTraining], trainer: L.Trainer, pl_module: L.LightningModule
) -> None:
    """Predict the validation rows once, fit each callback to its part, keep what it learned."""
    failure: Exception | None = None
    parts: list[LabelledPredictions] = []
    with best_weights(trainer, pl_module):
        try:
            estimate = estimate_of(trainer) or plain_estimate(trainer, pl_module, attach=False)
            parts = predict_validation(trainer, pl_module, estimate)
        except Exception as error:  # the others wait for this process
            failure = error
        failure = anyones_failure(trainer, failure)
        everything = None if failure else gathered(trainer, parts)
        failure = _kept(chain, trainer, pl_module, everything, failure)
        failure = anyones_failure(trainer, failure)
    if failure is not None:
        for callback in chain:
            callback._forget()
        raise failure
    _share(chain, trainer)


def _kept(
    chain: list[FittedAfterTraining],
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    parts: list[LabelledPredictions] | None,
    failure: Exception | None,
) -> Exception | None:
    """Fit on process 0, and keep it in its checkpoints; what failed that no callback can help."""
    if failure is not None and not isinstance(failure, StableLightningError):
        return failure
    if not trainer.is_global_zero:
        return None
    try:
        try:
            if failure is not None:
                raise failure
            _fit_in_order(chain, parts or [], fingerprint(pl_module))
        except StableLightningError as error:
            for callback in chain:
                callback._could_not(error)
        states = {callback.state_key: callback.state_dict() for callback in chain}
        keep_in_checkpoints(trainer, states, pl_module.state_dict())
    except Exception as error:
        return error
    return None


def _fit_in_order(
    chain: list[FittedAfterTraining], parts: list[LabelledPredictions], weights: str
) -> None:
    if not parts:
        raise DataError(
            f"{chain[0].name} needs validation rows, and the validation data gave none; check "
            "what val_dataloader returns."
        )
    whole = LabelledPredictions.joined(parts)
    dealt = deal(whole.target, whole.keys, parts=len(chain), seed=chain[0].seed)
    for number, callback in enumerate(chain):
        part = whole.rows(dealt[number])
        try:
            for earlier in chain[:number]:
                if earlier.calibrator is None:  # it could not be fitted, and will be left out
                    continue
                corrected = earlier.calibrator.applied(part.prediction, part.keys)
                part = replace(part, prediction=corrected)
            callback._fit(part, weights, list(chain[:number]))
        except StableLightningError as error:
            callback._could_not(error)


def _share(chain: list[FittedAfterTraining], trainer: L.Trainer) -> None:
    """Give every process what the first one has fitted."""
    if trainer.world_size == 1:
        return
    states = told_by_first(trainer, [callback.state_dict() for callback in chain])
    for callback, state in zip(chain, states, strict=True):
        callback.load_state_dict(state)


def _fitted(trainer: L.Trainer) -> list[FittedAfterTraining]:
    return [step for step in chain_of(trainer) if isinstance(step, FittedAfterTraining)]


def _put_last(trainer: L.Trainer) -> None:
    """After training they must see the weights that all others, checkpoints included, left."""
    everything: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    chain: list[L.Callback] = [*chain_of(trainer)]
    others = [callback for callback in everything if callback not in chain]
    trainer.callbacks = [*others, *chain]  # type: ignore[attr-defined]


def _listed(keys: list[str]) -> str:
    return " and ".join(key.partition("{")[0] for key in keys) or "the samples"
