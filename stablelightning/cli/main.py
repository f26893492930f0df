"""The light door of the command: what does not need torch is answered without importing it."""

import sys
from collections.abc import Callable, Sequence

from stablelightning import __version__
from stablelightning.cli.failure import one_line
from stablelightning.errors import RecipeError

VERBS = {
    "fit": "train a model (LightningCLI)",
    "validate": "one pass over the validation set (LightningCLI)",
    "test": "one pass over the test set (LightningCLI)",
    "predict": "predict from the folder of a run, or as LightningCLI does from --config",
    "run": "train a recipe, test it with Monte Carlo dropout, and report",
    "doctor": "find before training what will go wrong in it",
}

_HELP = """\
usage: stablelightning [--help] [--version] VERB ... [--debug]

Train a deep network, and know what it does not know.

verbs:
{verbs}

options:
  --help      this text; after a verb, that verb's own
  --version   the version
  --debug     on an error, the whole traceback instead of one line

begin with:
  stablelightning run --list
  stablelightning run digits
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; ``None`` takes those of the process.

    Returns:
        The exit status: 0; 2 where a setting, a file or the data must be mended; 1 where something
        unexpected broke, or the doctor found an error; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _dispatch([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        print("stablelightning: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        line, status = one_line(error)
        print(f"stablelightning: error: {line}", file=sys.stderr)
        return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        width = max(map(len, VERBS))
        print(_HELP.format(verbs="\n".join(f"  {v:<{width}}  {d}" for v, d in VERBS.items())))
        return 0
    verb, *rest = arguments
    if verb == "--version":
        print(f"stablelightning {__version__}")
        return 0
    return _verb(verb, rest)(rest)


def _verb(verb: str, rest: list[str]) -> Callable[[list[str]], int]:
    if verb == "run":
        from stablelightning.cli.run import main as run

        return run
    if verb == "doctor":
        from stablelightning.cli.doctor import main as doctor

        return doctor
    names_folder = bool(rest) and not rest[0].startswith("-")
    if verb == "predict" and (names_folder or rest in (["-h"], ["--help"])):
        from stablelightning.cli.predict import main as predict

        return predict
    if verb in VERBS:
        from stablelightning.cli.lightning import main as lightning

        return lambda arguments: lightning([verb, *arguments])
    from stablelightning.cli.recipes import did_you_mean

    raise RecipeError(
        f"the verb must be one of {', '.join(VERBS)}, got {verb!r}"
        f"{did_you_mean(verb, list(VERBS)) or '.'}"
    )
