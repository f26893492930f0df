"""A diagnosis before training, inside a Trainer, and the cures where they are asked for."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from stablelightning.callbacks.agreement import anyones_failure
from stablelightning.callbacks.before import ChangesStructure, for_each_member
from stablelightning.callbacks.first_batches import first_batches, joined
from stablelightning.callbacks.resume import checkpoint_to_load
from stablelightning.checks import check_whole
from stablelightning.errors import (
    MissingPackageError,
    ModelError,
    StableLightningWarning,
)
from stablelightning.model.cures import (
    recorded_treatments,
    repeat_treatments,
)
from stablelightning.model.diagnose import diagnose
from stablelightning.model.diagnosis import Diagnosis
from stablelightning.model.generators import undisturbed_generators
from stablelightning.report.diagnosis import (
    diagnosis_figure,
    findings_rows,
    layer_rows,
    summary_line,
)
from stablelightning.report.page import write_diagnosis
from stablelightning.report.wandb import log_figure, log_table
from stablelightning.words import some

_log = logging.getLogger(__name__)

_NAMED = 3  # findings in a warning; the page has them all


class ConsultDoctor(ChangesStructure):
    """Diagnose the model before the first step of ``fit``, and cure it if that is asked for.

    Once the module has made its layers (``setup``, ``configure_model``) and before there is an
    optimizer: :func:`stablelightning.diagnose` on the first batches of the training data, at most
    three training steps' worth of work that leaves no trace. With
    ``apply``, the mechanical cures follow (initialize, skips, norms, ...), and a second diagnosis.
    What a cure adds belongs to the model from then on: the optimizer holds it, and checkpoints
    hold what was done, so that a resumed run, a test or a prediction changes the structure of a
    new model in the same way before weights are loaded. A run that goes on from a checkpoint is not
    diagnosed again.

    With several processes the first one decides, and the others follow.

    Logged, to every logger of the Trainer: ``doctor/errors`` and ``doctor/warnings`` (findings
    left), ``doctor/forward_slope`` and ``doctor/gradient_slope`` (of the natural logarithm, per
    layer), ``doctor/underflow`` (share); to W&B also the page as a figure, and the tables
    ``doctor/findings``, ``doctor/layers`` and ``doctor/treatments``. The page lies beside the logs,
    as ``doctor.html``, ``doctor.png`` and ``doctor.json``, where there is a logger.

    Args:
        apply: perform the cures; ``False`` only tells.
        batches: number of batches whose rows are looked at together, >= 1.
        strict: end the run before it starts if an error is left.
        required: raise where a diagnosis is not possible (data that cannot be read, a batch that
            does not fit); ``False`` says so in a warning, and steps aside.

    Attributes:
        diagnosis: the last diagnosis, on process 0; its ``before`` is the one before the cures.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: ``strict``, and an error is left; a model without parameters.
        DataError: there is no training data, or its batches do not fit the model.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> doctor = ConsultDoctor()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[doctor],
        ... )
        >>> trainer.fit(BoringModel())
        >>> [layer.name for layer in doctor.diagnosis.layers]
        ['layer']
    """

    def __init__(
        self,
        apply: bool = False,
        *,
        batches: int = 1,
        strict: bool = False,
        required: bool = True,
    ) -> None:
        super().__init__()
        check_whole("batches", batches, least=1)
        self.apply = apply
        self.batches = batches
        self.strict = strict
        self.required = required
        self.diagnosis: Diagnosis | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Diagnose, or prepare for the checkpoint that will be loaded."""
        super().setup(trainer, pl_module, stage)
        self.leave()
        self.repeat_before_loading(pl_module)
        if stage == "fit" and trainer.limit_train_batches != 0 and not checkpoint_to_load(trainer):
            self.when_the_model_is_there(trainer, pl_module, for_each_member(self._consult))

    # ---- a diagnosis ------------------------------------------------------------------------

    def _consult(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let process 0 examine the model, and all end up with the same one."""
        self.diagnosis = None
        failure: Exception | None = None
        try:
            # On every process: a loader may be one that all must enter.
            batch = joined(first_batches(trainer, pl_module, self.batches))
            if trainer.is_global_zero:
                with undisturbed_generators():
                    self.diagnosis = self._examined(pl_module, batch)
        except Exception as error:
            failure = error
        failure = anyones_failure(trainer, failure)
        if failure is not None:
            self.diagnosis = None
            if self.required or self.strict:
                raise failure
            rank_zero_warn(f"ConsultDoctor steps aside: {failure}", category=StableLightningWarning)
            return
        if self.apply and trainer.world_size > 1:
            _follow_the_first(trainer, pl_module)
        if self.diagnosis is not None and not getattr(pl_module, "chosen", None):
            self._tell(trainer, self.diagnosis)  # of an ensemble, that of its first member

    def _examined(self, pl_module: L.LightningModule, batch: Any) -> Diagnosis:
        diagnosis = diagnose(pl_module, batch)
        if self.apply and diagnosis.findings:
            diagnosis = diagnosis.apply()
        # What performs the cures holds the model and the batch.
        diagnosis.cure = None
        if diagnosis.before is not None:
            diagnosis.before.cure = None
        if self.strict and diagnosis.worst == "error":
            remedy = "mend these" if self.apply else "apply the cures (apply: true)"
            raise ModelError(
                f"a model must be fit to be trained, and the doctor finds {_named(diagnosis)}; "
                f"{remedy}, or set strict to false."
            )
        return diagnosis

    # ---- what is told -----------------------------------------------------------------------

    def _tell(self, trainer: L.Trainer, diagnosis: Diagnosis) -> None:
        for treatment in diagnosis.treatments:
            rank_zero_info(f"The doctor: {treatment}")
        if diagnosis.worst == "error":
            rank_zero_warn(
                f"the doctor finds {_named(diagnosis)}; {summary_line(diagnosis)}.",
                category=StableLightningWarning,
            )
        else:
            rank_zero_info(f"The doctor: {summary_line(diagnosis)}.")
        if not trainer.loggers:
            return
        errors, warnings = (
            float(sum(f.severity == severity for f in diagnosis.findings))
            for severity in ("error", "warning")
        )
        numbers = {
            "doctor/errors": errors,
            "doctor/warnings": warnings,
            "doctor/forward_slope": diagnosis.forward_slope,
            "doctor/gradient_slope": diagnosis.gradient_slope,
            "doctor/underflow": diagnosis.underflow,
        }
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=0)
        log_table(trainer.loggers, "doctor/findings", *findings_rows(diagnosis))
        log_table(trainer.loggers, "doctor/layers", *layer_rows(diagnosis))
        if diagnosis.treatments:
            rows = [[t.cure, t.done, t.words] for t in diagnosis.treatments]
            log_table(trainer.loggers, "doctor/treatments", ["cure", "done", "words"], rows)
        self._write_page(trainer, diagnosis)

    def _write_page(self, trainer: L.Trainer, diagnosis: Diagnosis) -> None:
        folder = trainer.loggers[0].log_dir or trainer.loggers[0].save_dir
        try:
            if diagnosis.layers:
                log_figure(trainer.loggers, "doctor/page", diagnosis_figure(diagnosis))
            if folder is not None:
                write_diagnosis(diagnosis, Path(folder))
        except MissingPackageError as error:
            _log.info("the doctor's page was not drawn: %s", error)


def _named(diagnosis: Diagnosis) -> str:
    """The worst findings by code and place."""
    errors = [f for f in diagnosis.findings if f.severity == "error"]
    said = [f"{f.code}{f' at {f.module}' if f.module else ''}" for f in errors]
    return some(said, _NAMED)


def _follow_the_first(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Give every process the structure and the weights of process 0."""
    first = trainer.is_global_zero
    weights = {name: value.detach().cpu() for name, value in pl_module.state_dict().items()}
    sent = (recorded_treatments(pl_module), weights) if first else None
    treatments, weights = trainer.strategy.broadcast(sent)  # type: ignore[misc]
    if not first:
        repeat_treatments(pl_module, treatments)
        pl_module.load_state_dict(weights)
