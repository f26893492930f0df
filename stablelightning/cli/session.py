"""One run of a recipe: train, test the best checkpoint with Monte Carlo dropout, report."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar as AnyProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.cli.leave import leave_results, require_what_is_needed
from stablelightning.cli.lightning import StableCLI
from stablelightning.cli.observe import ObserveUnknown, TrySampling
from stablelightning.cli.output import make_folder, remove_stillborn
from stablelightning.cli.processes import end_together
from stablelightning.cli.quiet import ProgressBar, quiet
from stablelightning.cli.record import resolved_recipe, write_recipe
from stablelightning.cli.run import Plan
from stablelightning.cli.slots import SLOTS
from stablelightning.errors import DivergedError, RecipeError, StableLightningWarning
from stablelightning.report.wandb import finish_run, log_config

_LOGGER = {"class_path": "stablelightning.report.wandb.RunLogger"}


class RunCLI(StableCLI):
    """The settings of one run, its objects made, its results directed into one folder.

    Args:
        plan: what is to be run, and where its results go.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.written = [_read(path) for path in (plan.recipe, *plan.overlays)]
        self.recipe: dict[str, Any] = {}
        self.unknown: ObserveUnknown | None = None
        super().__init__(plan.arguments, run=False, seed_everything_default=0)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As for every verb; a run also keeps a W&B log, and samples unless told not to."""
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"trainer.logger": _LOGGER, "trainer.enable_model_summary": False})
        for slot in SLOTS:
            usual: dict[str, Any] = {"class_path": slot.callback}
            if not self._mentions(slot.concern):
                if slot.unasked is None:
                    continue
                usual["init_args"] = slot.unasked
            parser.set_defaults({slot.key: usual})

    def _mentions(self, concern: str) -> bool:
        """Whether the recipe or an overlay says anything of a slot, were it only ``null``."""
        ours = [written.get("stable") for written in self.written]
        return any(isinstance(slots, dict) and concern in slots for slots in ours)

    def before_instantiate_classes(self) -> None:
        """Keep the recipe as it was written, then direct what the run leaves into its folder.

        In this order, so that the config.yaml of a run is a recipe that makes another run, with a
        folder of its own.
        """
        super().before_instantiate_classes()
        self.recipe = resolved_recipe(self.parser, self.config)
        folder = self.plan.folder
        if self.config.get("trainer.default_root_dir") is None:
            self.config["trainer.default_root_dir"] = str(folder)
        loggers = self.config.get("trainer.logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            _direct(logger, folder)

    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[L.Callback]
    ) -> L.Trainer:
        listed = config.get("callbacks") or []
        everything = [*(listed if isinstance(listed, list) else [listed]), *callbacks]
        for keeper in everything:
            if isinstance(keeper, ModelCheckpoint) and keeper.dirpath is None:
                keeper.dirpath = str(self.plan.folder / "checkpoints")
        found = [c for c in everything if isinstance(c, EstimateUncertainty)]
        if found:
            self.unknown = ObserveUnknown(found[0])
            callbacks = [*callbacks, TrySampling(found[0]), self.unknown]
        has_progress = any(isinstance(c, AnyProgressBar) for c in everything)
        if config.get("enable_progress_bar") is not False and not has_progress:
            callbacks = [*callbacks, ProgressBar()]
        return super()._instantiate_trainer(config, callbacks)

    def check_data(self) -> None:
        """Read the data before there is a folder, so that bad data leaves none behind."""
        data = self.datamodule
        if data is None or not self.trainer.is_global_zero:
            return
        # As Lightning does before it calls these hooks: data may ask what the weights of the
        # network were trained on.
        data.trainer = self.trainer
        self.trainer.strategy.connect(self.model)
        # Lightning sets it up once more; a split drawn then must be that of the other processes.
        with isolate_rng():
            data.prepare_data()
            data.setup("fit")


def _read(path: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} must be YAML that can be read: {error}") from error
    if not isinstance(read, dict):
        raise RecipeError(
            f"{path} must hold settings under their keys (model:, data:, trainer:), got "
            f"{type(read).__name__}."
        )
    return read


def run_plan(plan: Plan) -> None:
    """Train, test and report.

    Raises:
        StableLightningError: something must be mended; no folder is left if not a step was trained.
    """
    began = time.monotonic()
    quiet()
    require_what_is_needed()
    cli = RunCLI(plan)
    cli.check_data()
    first = cli.trainer.is_global_zero
    made = plan.folder
    if first:
        made = make_folder(plan.folder)
        write_recipe(plan.folder, cli.recipe)
        print(f"{plan.recipe.stem}: the results go to {plan.folder}", flush=True)
    try:
        _fit_and_test(cli)
        if first:
            seconds = time.monotonic() - began
            leave_results(cli.trainer, plan.folder, unknown=cli.unknown, seconds=seconds)
    except BaseException as error:
        finish_run(cli.trainer.loggers, failed=True)
        # Who gave up was brought back, perhaps to step 0; what it wrote of that is wanted.
        if first and not cli.trainer.global_step and not isinstance(error, DivergedError):
            remove_stillborn(plan.folder, made)
        if cli.trainer.interrupted and isinstance(error, SystemExit):
            raise KeyboardInterrupt from error  # which Lightning had turned into an exit
        raise
    finish_run(cli.trainer.loggers)
    end_together()


def _fit_and_test(cli: RunCLI) -> None:
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    log_config(trainer.loggers, cli.recipe)
    trainer.fit(model, datamodule=data)
    if not _has_test(model, data):
        rank_zero_warn(
            f"{type(model).__name__} has no test_step, or there is no test_dataloader: the run "
            "ends after training. Add both to see how good it is, and how sure.",
            category=StableLightningWarning,
        )
        return
    keeper = trainer.checkpoint_callback
    best = keeper.best_model_path if isinstance(keeper, ModelCheckpoint) else ""
    # Written by this very run, so that objects in it may be trusted.
    trusted = {"weights_only": False} if best else {}
    trainer.test(model, datamodule=data, ckpt_path=best or None, verbose=False, **trusted)


def _has_test(model: L.LightningModule, data: L.LightningDataModule | None) -> bool:
    has_loader = is_overridden("test_dataloader", model) or (
        data is not None and is_overridden("test_dataloader", data)
    )
    return is_overridden("test_step", model) and has_loader


def _direct(logger: Any, folder: Path) -> None:
    """Let a logger write into ``folder``, unless the recipe says where it shall write."""
    if not isinstance(logger, Namespace):
        return
    if logger.get("init_args.save_dir", folder) in (None, ".", folder):
        logger["init_args.save_dir"] = str(folder)
