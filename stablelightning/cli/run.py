"""``stablelightning run``: what can be said before torch is imported."""

import argparse
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from stablelightning.cli.output import reserved
from stablelightning.cli.recipes import ADD, START, find, listing, shipped
from stablelightning.errors import RecipeError

_HELP = """\
usage: stablelightning run RECIPE [--add OVERLAY]... [--output DIR] [--KEY=VALUE]...

Train a recipe, test its best checkpoint with Monte Carlo dropout, and report: numbers
(summary.json), predictions (predictions.parquet), plots, a table in the terminal, a W&B run.

  RECIPE          the name of a shipped recipe, or the path of a YAML file of your own
  --add OVERLAY   stack an overlay on it, a shipped name or a path; may be repeated
  --output DIR    a new or empty folder for what the run leaves; runs/<recipe>-<n> otherwise
  --list          the shipped recipes and overlays
  --print_config  print the recipe that results, and stop
  --KEY=VALUE     override any setting; stablelightning fit --help lists them

examples:
  stablelightning run digits
  stablelightning run digits --trainer.max_epochs=5 --stable.uncertainty.samples=100
  stablelightning run digits --add multi_gpu --output results/two_gpus
  stablelightning run mine.yaml --stable.uncertainty=null"""


#: How alike two names are, in [0, 1], of which one is taken for a slip in the other.
_NEAR = 0.8


@dataclass(frozen=True)
class Plan:
    """What is to be run, and where its results go."""

    recipe: Path
    overlays: tuple[Path, ...]
    overrides: tuple[str, ...]
    folder: Path

    @property
    def arguments(self) -> list[str]:
        """The command line for LightningCLI: what comes later overrides what came before."""
        configs = [f"--config={path}" for path in (self.recipe, *self.overlays)]
        return [*configs, *self.overrides]


def main(arguments: list[str]) -> int:
    """Run a recipe, or list the recipes; returns the exit status.

    Raises:
        RecipeError: the recipe, an overlay or a setting is unknown.
        OutputError: the output folder cannot be written.
    """
    options, rest = _options().parse_known_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    if options.list:
        print(listing())
        return 0
    if not rest or rest[0].startswith("-"):
        raise RecipeError(
            f"run needs a recipe as its first argument: {', '.join(shipped(START))}, or the path "
            f"of a YAML file; got {repr(rest[0]) if rest else 'none'}."
        )
    recipe = find(rest[0], START)
    overlays = tuple(find(name, ADD) for name in options.add)
    with reserved(options.output, recipe.stem) as folder:
        from stablelightning.cli.session import run_plan

        run_plan(Plan(recipe, overlays, tuple(rest[1:]), folder))
    return 0


class LightParser(argparse.ArgumentParser):
    """Takes the options of a verb out of the line, and leaves the settings to LightningCLI."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse does; a setting that is all but an option of this verb is a slip."""
        options, rest = super().parse_known_args(*args, **kwargs)
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for argument in rest:
            name = argument.partition("=")[0]
            if name.startswith("--") and (near := get_close_matches(name, known, 1, _NEAR)):
                self.error(f"there is no option {name}; did you mean {near[0]}?")
        return options, rest

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a ``RecipeError``."""
        end = "" if message.endswith("?") else "; write the verb with --help to see its options."
        raise RecipeError(message + end)


def _options() -> argparse.ArgumentParser:
    parser = LightParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--add", action="append", default=[])
    parser.add_argument("--output")
    return parser
