"""LightningCLI with named slots, one-line errors and short class names."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from stablelightning.cli.checkpoint import KeepBest
from stablelightning.cli.explain import explain, inner_error
from stablelightning.cli.failure import mismatch
from stablelightning.cli.outputs import describe_network, fill_sizes
from stablelightning.cli.processes import end_together
from stablelightning.cli.quiet import quiet
from stablelightning.cli.record import SaveRecipe
from stablelightning.cli.slots import SLOTS
from stablelightning.errors import CheckpointError, RecipeError, StableLightningError
from stablelightning.model.backbones import without_weights

#: Imported before parsing, so that their classes can be named without their modules.
_SHORT_NAMES = (
    "stablelightning.data",
    "stablelightning.ensemble",
    "stablelightning.module",
    "stablelightning.nn",
)

#: What Lightning takes for a checkpoint beside a path.
_SPECIAL = re.compile(r"best$|last$|hpc$|registry(:|$)|\w+://")


class StableArgumentParser(LightningArgumentParser):
    """The parser of LightningCLI, which states an error in one line and takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, *rest: Any, **named: Any) -> Any:
        """Parse; a ``null`` two levels down (``--model.network.weights=null``) is one.

        For such a setting jsonargparse reads the value, and hands it to a parser within the parser
        as Python writes it, where ``None`` is a word like any other.
        """
        if isinstance(args, list) and len(args) == 1 and str(args[0]).endswith("=None"):
            args = [args[0].removesuffix("None") + "null"]
        return super().parse_args(args, *rest, **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the parser's message as a ``RecipeError`` of one line."""
        if not self.exit_on_error:  # a parser within the parser, whose error the outer one reads
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise RecipeError(explain(message, parser)) from ex


class StableCLI(LightningCLI):
    """LightningCLI for any model and any data, with the slots of this package.

    The resolved recipe is saved where a verb is run.

    Args:
        args: the command line.
        run: whether the first argument is a verb that is run.
        **kwargs: passed on to LightningCLI.
    """

    def __init__(self, args: list[str], *, run: bool = True, **kwargs: Any) -> None:
        for name in _SHORT_NAMES:
            module = import_module(name)
            for short in getattr(module, "__all__", ()):
                getattr(module, short)  # names that a module imports on first use
        make_working_folder_importable()
        super().__init__(
            args=args,
            run=run,
            parser_class=StableArgumentParser,
            save_config_callback=SaveRecipe if run else None,
            subclass_mode_model=True,
            subclass_mode_data=True,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the slots and the checkpoint that every run keeps."""
        parser.add_lightning_class_args(KeepBest, "checkpoint")
        for slot in SLOTS:
            slot.load()
            parser.add_subclass_arguments(
                Callback, slot.key, required=False, instantiate=True, help=slot.help
            )
            parser.callback_keys.append(slot.key)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; the arguments always come from :func:`stablelightning.cli.main.main`."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Ask the data how many inputs and outputs a network has that leaves them open.

        And a backbone file what it is, so that the recipe of a run can do without the file.
        """
        config = self.config.get(str(self.subcommand), self.config)
        describe_network(config)
        fill_sizes(config)

    def instantiate_classes(self) -> None:
        """Make the model, the data and the Trainer; what a constructor refuses is a bad setting."""
        path = self._checkpoint()
        # What a checkpoint brings is not fetched or read before it.
        whole = path is not None and Path(path).is_file()
        try:
            with without_weights() if whole else nullcontext():
                super().instantiate_classes()
        except StableLightningError:
            raise
        except ValueError as error:
            said = next((e for e in _chain(error) if isinstance(e, StableLightningError)), None)
            raise said or RecipeError(inner_error(str(error)) or str(error)) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        ours = [callback for callback in callbacks if callback is not None]
        listed = config.get("callbacks") or []
        listed = listed if isinstance(listed, list) else [listed]
        if config.get("enable_checkpointing") is False or any(
            isinstance(callback, Checkpoint) for callback in listed
        ):
            ours = [callback for callback in ours if not isinstance(callback, KeepBest)]
        ours += [callback.last() for callback in ours if isinstance(callback, KeepBest)]
        return super()._instantiate_trainer(config, ours)

    def _parse_ckpt_path(self) -> None:
        path = self._checkpoint()
        if path and not _SPECIAL.match(path) and not Path(path).exists():
            raise CheckpointError(f"--ckpt_path must be a file, got {path!r}; check the path.")
        with checkpoint_errors(path):
            super()._parse_ckpt_path()

    def _run_subcommand(self, subcommand: str) -> None:
        with checkpoint_errors(self._checkpoint()):
            super()._run_subcommand(subcommand)

    def _checkpoint(self) -> str | None:
        path = self.config.get(f"{self.config.get('subcommand')}.ckpt_path")
        return None if path is None else str(path)


def main(arguments: list[str]) -> int:
    """Run one of LightningCLI's own verbs; the first argument names it."""
    quiet()
    StableCLI(arguments)
    end_together()
    return 0


@contextmanager
def checkpoint_errors(path: str | None) -> Iterator[None]:
    """State in one line why a checkpoint cannot be used.

    Args:
        path: of the checkpoint, ``None`` if there is none.

    Raises:
        CheckpointError: it is damaged, no checkpoint at all, or of another model.
    """
    try:
        yield
    except (RuntimeError, UnpicklingError) as error:
        if "loading state_dict" in str(error):
            raise CheckpointError(mismatch(str(error))) from error
        if path and (isinstance(error, UnpicklingError) or "PytorchStreamReader" in str(error)):
            raise CheckpointError(
                f"a checkpoint must be one that Lightning wrote, and {path} cannot be read so; "
                "give another file (or --weights_only=false where it holds objects that you trust)."
            ) from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def make_working_folder_importable() -> None:
    """Let a recipe name the user's own classes in files of the working folder."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
