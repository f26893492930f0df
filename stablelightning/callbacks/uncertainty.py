"""Monte Carlo dropout inside ``Trainer.test`` and ``Trainer.predict``, for any LightningModule."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.corrections import Corrections
from stablelightning.callbacks.loaders import TestLoaders
from stablelightning.callbacks.records import in_target_units
from stablelightning.callbacks.sampling import BatchPredictor, check_sampling, target_scale
from stablelightning.callbacks.sampling import gives_features as gives_features
from stablelightning.callbacks.steps import (
    Step,
    refuse_unsampled,
    replace_method,
    step_arguments,
    unobserved,
)
from stablelightning.errors import DataError, StableLightningWarning
from stablelightning.model.masks import Masks, check_masks, is_consistent
from stablelightning.model.prediction import Prediction
from stablelightning.model.sample import Engine


class EstimateUncertainty(StableCallback):
    """Say in ``Trainer.test`` and ``Trainer.predict`` how far the predictions can be trusted.

    Works around any LightningModule without a change to its code. **Test:** ``test_step`` runs once
    per batch, as ever; afterwards the module's own ``predict_step`` if there is one, else its
    ``forward``, is run once as it is and ``samples`` times with its dropout on. **Predict:**
    ``Trainer.predict`` returns a :class:`~stablelightning.Prediction` per batch in place of what
    ``predict_step`` returns. Fitting and validation are left alone.

    Calls happen in the Trainer's precision, with ``self.log`` muted, dropout as the only thing in
    training mode, and from seeds of their own: training flags, buffers and random number
    generators are afterwards as they were, and a repeated run gives the same numbers.

    How a batch becomes inputs and target is the rule of
    :func:`~stablelightning.callbacks.batches.inputs_and_target`. To change it, give the module a
    method ``inputs_and_target(batch)``, or override the one here.

    Logged at the end of the test, and kept in ``results``, as ``uncertainty/<name>`` (with
    ``/dataloader_idx_<i>`` behind it where there are several): ``total``, ``aleatoric``,
    ``epistemic`` and, for classes, ``variation_ratio``, each the mean over the rows;
    ``samples_used``; and where there is a target, once for the plain pass and once, with ``_mc``
    behind the name, for the mean of the samples:

    - classification: ``accuracy``, ``nll`` (nats), ``brier``, ``ece`` (15 bins of equal width);
    - multilabel: ``accuracy``, ``nll``, ``brier``, each the mean over the labels;
    - regression: ``rmse`` and, where there is a variance, ``nll`` and ``coverage_90`` (share of the
      targets in the central 90% interval). ``nll_mc`` is that of the mixture of the samples, or of
      one Gaussian with the total variance where the head predicts no noise, or pixels are
      predicted. A data module's ``target_scale`` (mean, std) brings values back to the target's
      units.

    Callbacks that correct predictions (:class:`~stablelightning.callbacks.Calibrate` and those of
    conformal sets and decisions) are applied in the order of their rank, to what ``predict``
    returns as well. The scores of a corrected mean are logged with ``_calibrated`` behind the name,
    those of sets, intervals and answers as ``coverage`` beside ``level``, ``set_size`` or
    ``width``, ``answered``, and ``accuracy_answered`` or ``rmse_answered``.

    With several processes every row is counted once, padding of the sampler left out, and
    every process logs the same values.

    Args:
        samples: number of samples, >= 1; the most that are drawn if ``tolerance`` is given.
        seed: >= 0; with it, the batch's number, the dataloader's and the process's are seeded.
        engine: how samples are computed, see :func:`~stablelightning.mc_dropout`.
        task: ``"auto"`` reads it from the module's ``task``, the target and the output.
        tolerance: stop sampling a batch once the standard error of every row's mean is below it
            (probability, or the model's own target units), > 0.
        masks: which dropout masks the samples get, see :func:`~stablelightning.sample_predictions`;
            consistent ones are the same in every batch, on every process.
        required: raise if uncertainty cannot be estimated (nothing random in the model, a batch or
            an output that cannot be read). ``False`` says so once in a warning, and steps aside.

    Attributes:
        results: after a test, the logged values by name, on every process.
        rows: after a test, on process 0, columns of equal length for the (first) dataloader:
            ``index`` (position in the dataset as the loader goes through it), ``target``,
            ``mean`` (N, C) or (N,), ``total``, ``aleatoric``, ``epistemic``, ``variation_ratio``
            and ``deterministic`` (what the plain pass says, in the shape of ``mean``); where it is
            corrected also ``calibrated`` (as ``mean``), ``total_calibrated`` and so on, ``sets``,
            ``lower``, ``upper``, ``answered`` and ``reason``. Empty for dense outputs (pixels,
            tokens), whose scores are streamed.
        all_rows: the same for every dataloader.

    Raises:
        RecipeError: a setting is out of its range; the strategy shards the model.
        NothingRandomError: at the first batch: the model has nothing random in it.
        DataError: a batch that the rule cannot read.
        ModelError: an output that is no prediction.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142.

    Example:
        >>> from torch import nn
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> model = BoringModel()
        >>> model.layer = nn.Sequential(nn.Dropout(0.5), model.layer)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False,
        ...     enable_checkpointing=False, enable_model_summary=False,
        ...     callbacks=[EstimateUncertainty(samples=10)],
        ... )
        >>> predictions = trainer.predict(model)
        >>> predictions[0].mean.shape, predictions[0].epistemic.shape
        (torch.Size([1, 2]), torch.Size([1]))
    """

    def __init__(
        self,
        samples: int = 50,
        *,
        seed: int = 0,
        engine: Engine = "auto",
        task: Literal["auto", "classification", "multilabel", "regression"] = "auto",
        tolerance: float | None = None,
        masks: Masks = "independent",
        required: bool = True,
    ) -> None:
        check_sampling(samples, seed, engine, task, tolerance)
        check_masks(masks)
        self.samples = samples
        self.seed = seed
        self.engine: Engine = engine
        self.task = task
        self.tolerance = tolerance
        self.masks: Masks = masks
        self.required = required
        self.results: dict[str, float] = {}
        self.all_rows: list[dict[str, Tensor]] = []
        self._aside = False
        self._said: set[str] = set()
        self._loaders: TestLoaders | None = None
        self.corrections: Corrections | None = None
        self._predictors: dict[int, BatchPredictor] = {}
        self._place = (0, 0)
        self._restore_step: Callable[[], None] | None = None

    @property
    def rows(self) -> dict[str, Tensor]:
        """Rows of the first test dataloader, on process 0."""
        return self.all_rows[0] if self.all_rows else {}

    def inputs_and_target(self, pl_module: L.LightningModule, batch: Any) -> tuple[Any, Any]:
        """Split a batch; override it where the rule does not fit.

        Args:
            pl_module: the module.
            batch: on the device, after ``on_after_batch_transfer``.

        Returns:
            The inputs (a tensor, a tuple for ``forward(*inputs)`` or a dict for
            ``forward(**inputs)``) and the target, or ``None``.

        Example:
            >>> class FirstView(EstimateUncertainty):
            ...     def inputs_and_target(self, pl_module, batch):
            ...         return batch["views"][0], batch["class"]
        """
        return inputs_and_target(pl_module, batch)

    # ---- test -------------------------------------------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the test before."""
        self.leave()
        self.results, self.all_rows = {}, []
        if gives_features(pl_module):
            return
        with self._or_step_aside():
            refuse_unsampled(trainer, pl_module.test_step)
            self._loaders = TestLoaders(trainer)
        self.corrections = Corrections(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = -1,
    ) -> None:
        """Predict the batch, plainly and by sampling, and score it; log where a dataloader ends."""
        if self._loaders is None:
            return
        for loader, part in self._loaders.parts(batch, dataloader_idx):
            with self._or_step_aside():
                self._observe(trainer, pl_module, part, (loader, batch_idx))
        if dataloader_idx >= 0 and batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            self._close(trainer, pl_module, dataloader_idx, ended=True)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what has not been logged yet."""
        if self._loaders is not None:
            for loader in self._loaders.open():
                self._close(trainer, pl_module, loader, ended=False)

    def _observe(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, place: tuple[int, int]
    ) -> None:
        assert self._loaders is not None
        if self._aside:
            return
        loader, batch_idx = place
        batch = move_data_to_device(batch, pl_module.device)
        inputs, target = self.inputs_and_target(pl_module, batch)
        step = pl_module.predict_step
        arguments = step_arguments(step, batch, batch_idx, self._loaders.named(loader))
        predictor = self._predictor(pl_module, step, loader)
        seed = self.seed_of(loader, trainer.global_rank, batch_idx)
        with unobserved(trainer, pl_module):
            seen = predictor.observation(inputs, target, arguments, seed=seed)
            seen = seen.in_target_units(target_scale(trainer))
            if self.corrections:
                seen = replace(seen, corrected=self.corrections(seen.sampled, inputs))
            index, fresh = self._loaders.positions(loader, seen.rows)
            self._loaders.record(loader, seen.plain.task).add(seen, index, fresh)

    def _close(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loader: int, *, ended: bool
    ) -> None:
        """Gather one dataloader from all processes and log it; every process takes part.

        ``ended`` tells a dataloader's own last batch, where Lightning knows which one logs.
        """
        assert self._loaders is not None
        record = None
        with self._or_step_aside(), torch.inference_mode(False):  # rows are ordinary tensors
            record = self._loaders.close(loader, usable=not self._aside)
        if record is None:
            return
        suffix = self._loaders.suffix(loader)
        values = {f"uncertainty/{name}": value for name, value in record.sums.means().items()}
        self.results.update({name + suffix: value for name, value in values.items()})
        self.all_rows += record.rows or [{}]
        if trainer.barebones:
            return
        pl_module.log_dict(
            values if ended else {name + suffix: value for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=1,
            add_dataloader_idx=ended,
            # The same on every process; the largest of equal numbers is exact, their mean is not.
            reduce_fx="max",
            sync_dist=True,
        )

    # ---- predict ----------------------------------------------------------------------------

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put sampling in the place of the module's ``predict_step``, until the loop ends."""
        self.leave()
        if gives_features(pl_module):
            return
        step = pl_module.predict_step
        self.corrections = Corrections(trainer, pl_module)
        with self._or_step_aside():
            refuse_unsampled(trainer, step)

            @wraps(step)
            def sampled_step(*arguments: Any, **named: Any) -> Any:
                return self._predict(trainer, pl_module, step, (*arguments, *named.values()))

            self._restore_step = replace_method(pl_module, "predict_step", sampled_step)

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember which batch it is; a ``predict_step`` need not take its number."""
        self._place = (dataloader_idx, batch_idx)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module its ``predict_step`` back."""
        self.leave()

    def _predict(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        step: Step,
        arguments: tuple[Any, ...],
    ) -> Any:
        result = None
        with self._or_step_aside():
            if not self._aside:
                result = self._sampled_step(trainer, pl_module, step, arguments)
        return step(*arguments) if self._aside else result

    def _sampled_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        step: Step,
        arguments: tuple[Any, ...],
    ) -> Prediction:
        loader, batch_idx = self._place
        predictor = self._predictor(pl_module, step, loader)
        try:
            inputs, target = self.inputs_and_target(pl_module, arguments[0])
        except DataError:
            if predictor.needs_inputs:
                raise
            inputs, target = None, None  # the user's own predict_step reads the batch by itself
        target = target if isinstance(target, Tensor) else None
        seed = self.seed_of(loader, trainer.global_rank, batch_idx)
        with unobserved(trainer, pl_module):
            if not predictor.knows_task:
                predictor.plain(inputs, target, arguments, seed=seed)
            sampled = predictor.sampled(inputs, arguments, seed=seed)
            sampled = in_target_units(sampled, target_scale(trainer))
            if self.corrections:
                sampled = self.corrections(sampled, inputs)
        return replace(sampled, samples=None)

    # ---- both -------------------------------------------------------------------------------

    @property
    def or_plainly(self) -> bool:
        """Whether plain predictions are corrected where nothing in the model is random."""
        return not self.required

    def predictor(self, pl_module: L.LightningModule, step: Step) -> BatchPredictor:
        """What predicts the batches of one dataloader, by the settings of this callback.

        Args:
            pl_module: the module.
            step: its own ``predict_step``, unwrapped.
        """
        return BatchPredictor(
            pl_module,
            step,
            task=self.task,
            samples=self.samples,
            engine=self.engine,
            tolerance=self.tolerance,
            masks=self.masks,
        )

    def _predictor(self, pl_module: L.LightningModule, step: Step, loader: int) -> BatchPredictor:
        if loader not in self._predictors:
            self._predictors[loader] = predictor = self.predictor(pl_module, step)
            predictor.or_plainly = self.or_plainly and bool(self.corrections)
        return self._predictors[loader]

    def leave(self) -> None:
        """Leave the module as it was, and hold on to nothing but results and rows."""
        self._aside = False
        self._loaders = self.corrections = None
        self._predictors = {}
        if self._restore_step is not None:
            self._restore_step()
            self._restore_step = None

    def seed_of(self, *place: int) -> int:
        """A seed per batch: neighbouring numbers would give generators that start alike.

        Args:
            place: what tells the batch from others: its dataloader, the process, its number; it
                does not count for consistent masks, which all batches share.
        """
        place = () if is_consistent(self.masks) else place
        digest = hashlib.blake2b(repr((self.seed, *place)).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big")

    @contextmanager
    def _or_step_aside(self) -> Iterator[None]:
        """Where uncertainty is welcome but not required, no error of ours may end a run."""
        try:
            yield
        except Exception as error:
            if self.required or (self.corrections is not None and self.corrections.refused):
                raise
            self._aside = True
            message = f"EstimateUncertainty steps aside: {error}"
            if message not in self._said:
                self._said.add(message)
                rank_zero_warn(message, category=StableLightningWarning)
