"""``stablelightning doctor``: what can be said before torch is imported."""

import argparse
from dataclasses import dataclass

from stablelightning.cli.output import reserved
from stablelightning.cli.recipes import ADD, START, find, shipped
from stablelightning.cli.run import LightParser, Plan
from stablelightning.errors import RecipeError

_HELP = """\
usage: stablelightning doctor RECIPE [--add OVERLAY]... [--apply] [--KEY=VALUE]...

Find before training what will go wrong in it: build the model, the data and the optimizer of a
recipe, look at one training step, and say which layer will vanish, explode, die or stand still.
Nothing is trained, and nothing is sent anywhere.

  RECIPE          the name of a shipped recipe, or the path of a YAML file of your own
  --config FILE   the same, as LightningCLI takes it; may be repeated
  --add OVERLAY   stack an overlay on it, a shipped name or a path; may be repeated
  --apply         perform the cures (initialize, skips, norms, ...) on the model that was built, and
                  show before and after; to train it so, write stable.doctor into the recipe
  --batches N     look at the rows of so many batches together; 4 otherwise
  --out DIR       a new or empty folder for the page: doctor.html, doctor.png, doctor.json;
                  runs/<recipe>-doctor-<n> otherwise
  --KEY=VALUE     override any setting; stablelightning fit --help lists them

exit status: 0 where no error was found, warnings or not; 1 where an error was found (and, with
--apply, is left); 2 where a setting, a file or the data must be mended first

examples:
  stablelightning doctor digits_deep
  stablelightning doctor digits_deep --apply
  stablelightning doctor --config mine.yaml --batches 8 --out page"""

#: Rows enough to tell a dead unit from an idle one, in the batches of most recipes.
_BATCHES = 4


@dataclass(frozen=True)
class Consultation:
    """What is to be examined, and how."""

    plan: Plan
    batches: int
    apply: bool


def main(arguments: list[str]) -> int:
    """Examine a recipe; returns the exit status.

    Raises:
        RecipeError: the recipe, an overlay or a setting is unknown.
        OutputError: the output folder cannot be written.
    """
    options, rest = _options().parse_known_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    if options.batches < 1:
        raise RecipeError(f"--batches must be a whole number >= 1, got {options.batches}.")
    recipes = list(options.config)
    if rest and not rest[0].startswith("-"):
        recipes.insert(0, rest.pop(0))
    if not recipes:
        raise RecipeError(
            f"doctor needs a recipe as its first argument: {', '.join(shipped(START))}, or "
            f"--config with the path of a YAML file; got {repr(rest[0]) if rest else 'none'}."
        )
    recipe, *others = (find(name, START) for name in recipes)
    overlays = (*others, *(find(name, ADD) for name in options.add))
    with reserved(options.out, f"{recipe.stem}-doctor") as folder:
        from stablelightning.cli.consultation import consult

        plan = Plan(recipe, overlays, tuple(rest), folder)
        return consult(Consultation(plan, options.batches, options.apply))


def _options() -> argparse.ArgumentParser:
    parser = LightParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--add", action="append", default=[])
    parser.add_argument("--apply", action="store_true")
    parser.add_argument("--batches", type=int, default=_BATCHES)
    parser.add_argument("--out", "--output")
    return parser
