"""Find images that are in a data set twice: in two splits, or under two classes."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn

from stablelightning.errors import StableLightningWarning
from stablelightning.words import some

_TAIL = 1024  # bytes from which two images of one size in bytes are taken for possible copies
_NAMED = 3  # pairs that a message names


def warn_of_copies(splits: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """Warn where a file is in two splits (its score flatters), or under two classes.

    Files are the same where all of their bytes are. Only those of one length and one end are
    compared: for 200 photographs this takes milliseconds.

    Args:
        splits: name of every split, and path and class of its images.

    Example:
        >>> warn_of_copies({"train": [], "test": []})
    """
    places = {file: (name, label) for name, part in splits.items() for file, label in part}
    apart, torn = [], []
    for one, other in _copies(list(places)):
        (split, label), (other_split, other_label) = places[one], places[other]
        short, other_short = _short(one), _short(other)
        if split != other_split:
            apart.append(f"{short} ({split}) is {other_short} ({other_split})")
        if label != other_label:
            torn.append(f"{short} is {other_short}")
    if apart:
        _warn(
            f"Images that lie in two splits make validation and test flatter: {_named(apart)}; "
            "keep one of each."
        )
    if torn:
        _warn(f"Images that lie under two classes teach neither: {_named(torn)}; keep one of each.")


def _copies(files: list[str]) -> list[tuple[str, str]]:
    """Pairs of files with the same bytes: the first of them, with each of the others."""
    pairs = []
    for group in _alike(files, _end):
        for same in _alike(group, _digest):
            pairs += [(same[0], other) for other in same[1:]]
    return pairs


def _alike(files: list[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    groups = defaultdict(list)
    for file in files:
        groups[key(file)].append(file)
    return [group for group in groups.values() if len(group) > 1]


def _end(file: str) -> tuple[int, bytes]:
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - _TAIL))
        return size, opened.read()


def _digest(file: str) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "blake2b").digest()


def _short(file: str) -> str:
    """The last two parts of a path: the class and the name."""
    return os.sep.join(file.split(os.sep)[-2:])


def _named(pairs: list[str]) -> str:
    return f"{len(pairs)}, namely {some(pairs, _NAMED)}"


def _warn(message: str) -> None:
    rank_zero_warn(message, category=StableLightningWarning)
