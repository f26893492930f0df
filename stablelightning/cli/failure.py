"""From an exception to one line and an exit status."""

import os
import re

from stablelightning.errors import DivergedError, StableLightningError

MEND = 2  #: the reader can mend it: a setting, a file, the data, the environment
BROKEN = 1  #: nobody expected it

_SHAPES = re.compile(r"size mismatch for ([\w.]+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]")
_MISSING = re.compile(r"Missing key\(s\) in state_dict: \"([^\"]+)\"")
_UNEXPECTED = re.compile(r"Unexpected key\(s\) in state_dict: \"([^\"]+)\"")

#: What a DataLoader makes of an error in one of its processes: its whole traceback as the text.
_IN_WORKER = re.compile(r"^Caught (\w+) in DataLoader worker process \d+\..*\.\1: (.+)$")

#: How torch and Lightning say that the parts of a recipe do not fit, and what is to be done.
_MISFITS = (
    (
        re.compile(r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)"),
        "a network must take as many features as it is given, got rows of {0} for a layer of {1}; "
        "set its width, such as --model.network.in_features={0}",
    ),
    (
        re.compile(r"to have (\d+) channels, but got (\d+) channels"),
        "a network must take as many channels as its images have, got {1} for a layer of {0}; "
        "set --model.network.in_channels={1}",
    ),
    (
        re.compile(r"Target (\d+) is out of bounds"),
        "a network must have an output for every class, got the class {0} (counted from 0) and not "
        "as many outputs; set --model.network.out_features",
    ),
    (
        re.compile(r"Early stopping conditioned on metric `([^`]+)` which is not available"),
        "what EarlyStopping watches must be logged, and {0} is not; keep a validation set, or take "
        "it out of trainer.callbacks",
    ),
    (
        re.compile(
            r"ReduceLROnPlateau conditioned on metric (\S+) which is not available. "
            r"Available metrics are: \[([^\]]*)\]"
        ),
        "what a plateau watches must be logged, got {0} beside {1}; set --model.scheduler.monitor "
        "to one of these",
    ),
    (
        re.compile(r"element 0 of tensors does not require grad"),
        "a loss must depend on the model's parameters, and no gradient flows from this one to "
        "them; leave out .detach(), .item() and torch.no_grad(), or unfreeze a layer",
    ),
)


def one_line(error: BaseException) -> tuple[str, int]:
    """What went wrong as rule, what was received and remedy in one line, and the exit status.

    Errors that are not ours are rewritten where their cause is known (a file that is missing, a
    checkpoint of another model, a setting that Lightning refuses, parts that do not fit).
    A training that was given up has a report of several lines. Anything else is unexpected: its own
    first line, and where to see more.

    Example:
        >>> line, status = one_line(FileNotFoundError(2, "No such file or directory", "data.csv"))
        >>> print(status, line)
        2 data.csv must be a file that can be read: No such file or directory; check the path.
    """
    if isinstance(error, DivergedError):  # a report of what happened, step by step
        return str(error), MEND
    text = _flat(str(error)) or type(error).__name__
    if isinstance(error, StableLightningError):
        text = _IN_WORKER.sub(r"\2", text)
    for misfit, told in _MISFITS:  # also inside an error of ours that tells what torch said
        if found := misfit.search(text):
            return f"{told.format(*found.groups())} (--debug shows where it was).", MEND
    if isinstance(error, StableLightningError):
        return text, MEND
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return _of_file(error, text), MEND
    if "loading state_dict" in text:
        return mismatch(text), MEND
    if type(error).__name__ == "MisconfigurationException":  # known by name: Lightning is heavy
        return f"Lightning refuses these settings: {text}", MEND
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install it, or start from the folder where it lies.", MEND
    return (
        f"unexpected {type(error).__name__}: {text} "
        "(run it again with --debug to see the whole traceback)"
    ), BROKEN


def mismatch(text: str) -> str:
    """Say in one line which parameter of a checkpoint does not fit the model."""
    if found := _SHAPES.search(text):
        name, saved, wanted = found.groups()
        received = f"{name} is ({saved}) in the checkpoint and ({wanted}) in the model"
    elif found := _MISSING.search(text):
        received = f"it has no {found.group(1)}"
    elif found := _UNEXPECTED.search(text):
        received = f"its {found.group(1)} is unknown to the model"
    else:
        received = text[:200]
    return (
        f"a checkpoint must fit the model, and this one does not: {received}; "
        "give the settings that the model was trained with (config.yaml of its run)."
    )


def _of_file(error: OSError, text: str) -> str:
    if error.filename is None:
        return f"a file that was asked for must be readable: {text}; check the path."
    name, reason = os.fspath(error.filename), error.strerror or text
    return f"{name} must be a file that can be read: {reason}; check the path."


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
