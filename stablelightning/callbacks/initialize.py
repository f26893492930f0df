"""Initializing the weights of a module before training, inside a Trainer."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from stablelightning.callbacks.agreement import anyones_failure
from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.before import BeforeTraining, for_each_member
from stablelightning.callbacks.example import example_batch
from stablelightning.callbacks.resume import checkpoint_to_load
from stablelightning.callbacks.shards import is_sharded
from stablelightning.errors import DataError, ModelError, RecipeError, StableLightningWarning
from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.initialization import InitializationReport
from stablelightning.model.initialize import initialize_called
from stablelightning.model.materialize import make_lazy_ones, materialize
from stablelightning.model.schemes import scheme_named
from stablelightning.model.step import TrainingStep
from stablelightning.report.wandb import log_table

#: Inputs, and what is called with them: ``None`` is the module itself.
_Way = tuple[Any, Callable[..., Any] | None]
_Result = TypeVar("_Result")

#: Seeds of the draws are taken below this.
_SEEDS = 2**62


class InitializeWeights(BeforeTraining):
    """Initialize what is fresh before the first step of ``fit``; see :func:`sl.initialize`.

    Happens once the module has made its layers (``setup``, ``configure_model``) and before the
    strategy wraps it. Only parameters that look as torch's constructors left them are written:
    a loaded backbone stays as it is, the new head on it is initialized. A run that goes on from a
    checkpoint, or that has trained already, is left alone, as are validation, test and prediction.

    The example comes from the training data and leaves the loader's order, its generators and its
    workers alone; the draws start from the global seed, and leave every generator where it was. On
    several processes the first one draws and all others take its weights over, whatever their
    seeds.

    Where it cannot run (a forward that cannot be called, a stream that is read once, a strategy
    that shards), it says so in one warning, and training goes on from the weights as they are.

    Logged to W&B: the report as the table ``initialize/layers``.

    Args:
        scheme: see :func:`stablelightning.initialize`.
        overwrite: write all layers, whatever they hold. Not for loaded weights.

    Attributes:
        report: what was done, on process 0; ``None`` where nothing was.

    Raises:
        RecipeError: there is no such scheme.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> callback = InitializeWeights()
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[callback],
        ... )
        >>> trainer.fit(BoringModel())
        >>> callback.report["layer"].distribution
        'Glorot uniform'
    """

    def __init__(self, scheme: str = "auto", *, overwrite: bool = False) -> None:
        super().__init__()
        scheme_named(scheme)
        if not isinstance(overwrite, bool):
            raise RecipeError(
                f"overwrite must be true or false, got {overwrite!r}; to name layers, call "
                "sl.initialize(model, example, overwrite=[...])."
            )
        self.scheme = scheme
        self.overwrite = overwrite
        self.report: InitializationReport | None = None

    # ---- when -------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Initialize, once the layers are there."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.report = None
        if trainer.limit_train_batches == 0 or trainer.global_step or checkpoint_to_load(trainer):
            return
        self.when_the_model_is_there(trainer, pl_module, for_each_member(self._initialize))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell what was done."""
        self.leave()
        if self.report is None or trainer.barebones:
            return
        rank_zero_info(self.report.summary())
        if trainer.loggers:
            log_table(trainer.loggers, "initialize/layers", *self.report.rows_for_table())

    # ---- what -------------------------------------------------------------------------------

    def _write(self, pl_module: L.LightningModule, inputs: Any, call: Any) -> InitializationReport:
        return initialize_called(
            pl_module,
            inputs,
            call=call,
            scheme=scheme_named(self.scheme),
            overwrite=self.overwrite,
        )

    def _initialize(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        failure: Exception | None = None
        ways: list[_Way] = []
        with undisturbed_generators(), torch.inference_mode(False):
            torch.manual_seed(int(torch.randint(_SEEDS, ())))
            try:
                _refuse_sharded(trainer)
                ways = _ways(trainer, pl_module)
                if not trainer.is_global_zero:
                    for inputs, call in ways:
                        make_lazy_ones(pl_module, inputs, call=call)
            except Exception as error:  # a dataset, a transform, a forward: whatever they raise
                failure = error
            failure = anyones_failure(trainer, failure)
            if failure is None and trainer.is_global_zero:
                try:
                    self.report = _first_that_fits(ways, partial(self._write, pl_module))
                except Exception as error:
                    failure = error
            failure = anyones_failure(trainer, failure)
        if failure is not None:
            self.report = None
            _warn(failure)
        elif trainer.world_size > 1:
            _take_over(trainer, pl_module, self.report)


def _ways(trainer: L.Trainer, pl_module: L.LightningModule) -> list[_Way]:
    """How the module may be called, with what: its forward, its training step, its own example."""
    batch = example_batch(trainer, pl_module)
    for note in materialize(pl_module, tuple(tree_leaves(batch))):
        rank_zero_warn(note, category=StableLightningWarning)
    batch = _as_the_weights(pl_module, batch)
    ways: list[_Way] = []
    if is_overridden("forward", pl_module):
        with suppress(DataError):  # its own step knows how to take the batch apart
            ways.append((inputs_and_target(pl_module, batch)[0], None))
    step = TrainingStep(pl_module, batch)
    ways.append((step.inputs, step.call))
    given: Any = pl_module.example_input_array
    if given is not None:  # of a GAN, whose forward takes noise and whose step is its own
        given = move_data_to_device(given, pl_module.device)
        ways.append((_as_the_weights(pl_module, given), None))
    return ways


def _first_that_fits(ways: list[_Way], use: Callable[[Any, Any], _Result]) -> _Result:
    """The result of the first way that the module can be called; the first one's failure if none.

    An example that does not fit is found out before a weight is written.
    """
    failure: DataError | None = None
    for inputs, call in ways:
        try:
            return use(inputs, call)
        except DataError as error:
            failure = failure or error
    raise failure or DataError("the module must be callable in some way, and it is in none.")


def _as_the_weights(pl_module: L.LightningModule, batch: Any) -> Any:
    """Floating point inputs in the dtype of a module whose weights all have another one."""
    dtypes = {p.dtype for p in pl_module.parameters() if p.is_floating_point()}
    if len(dtypes) != 1:
        return batch
    (dtype,) = dtypes

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.dtype == torch.get_default_dtype()
        return value.to(dtype) if floating else value

    return tree_map(cast, batch)


def _refuse_sharded(trainer: L.Trainer) -> None:
    if is_sharded(trainer):
        raise ModelError(
            f"{type(trainer.strategy).__name__} may split the weights before they are there; call "
            "sl.initialize(model, example) in configure_model"
        )


@torch.no_grad()
def _take_over(
    trainer: L.Trainer, pl_module: L.LightningModule, report: InitializationReport | None
) -> None:
    """Give every process what the first one wrote; every process must call this."""
    changed = trainer.strategy.broadcast(() if report is None else report.changed)
    parameters = dict(pl_module.named_parameters())
    for name in changed:
        mine = parameters[name]
        theirs: Any = mine.detach().cpu() if report is not None else None
        mine.copy_(trainer.strategy.broadcast(theirs))


def _warn(failure: Exception) -> None:
    lines = str(failure).strip().splitlines()
    reason = lines[0] if lines else type(failure).__name__
    rank_zero_warn(
        f"InitializeWeights leaves the weights as they are, and training goes on: {reason}",
        category=StableLightningWarning,
    )
