"""Find out before training which image files cannot be read, and leave them out or refuse them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from stablelightning.data.photographs import trouble_with
from stablelightning.errors import DataError, RecipeError, StableLightningWarning
from stablelightning.words import some

#: What is done about image files that cannot be read.
Unreadable = Literal["refuse", "skip"]

_NAMED = 3  # files that a message names
_HEAD, _TAIL = 16, 12  # bytes that tell the kind of a file, and that it was written to its end


def check_unreadable(unreadable: str) -> None:
    """Check the setting ``unreadable``.

    Raises:
        RecipeError: it is neither ``"refuse"`` nor ``"skip"``.

    Example:
        >>> check_unreadable("skip")
    """
    if unreadable not in get_args(Unreadable):
        raise RecipeError(
            f"unreadable must be refuse or skip, got {unreadable!r}; skip leaves damaged images "
            "out, and counts them."
        )


def readable_files(files: Sequence[str], *, unreadable: Unreadable) -> list[str]:
    """Leave out the images that cannot be read, or refuse them, before a model sees one.

    ``"refuse"`` is cheap: it looks at the two ends of each file, and decodes those that are not
    whole by the looks of it (truncated, empty, of another kind). What is damaged in its middle only
    is refused when it is loaded. ``"skip"`` must know them all, and decodes every image once.

    Args:
        files: paths of image files.
        unreadable: ``"refuse"`` or ``"skip"``.

    Returns:
        The files that can be read, in their order. A
        :class:`~stablelightning.errors.StableLightningWarning` counts and names the others.

    Raises:
        DataError: with ``"refuse"``, an image cannot be read.

    Example:
        >>> readable_files([], unreadable="refuse")
        []
    """
    doubtful = list(files) if unreadable == "skip" else [f for f in files if not _looks_whole(f)]
    reasons = _decoded(doubtful)
    bad = [file for file in doubtful if reasons[file] is not None]
    if not bad:
        return list(files)
    named = some([f"{file} ({reasons[file]})" for file in bad], _NAMED)
    if unreadable == "refuse":
        raise DataError(
            f"every image must be readable, got {len(bad)} of {len(files)} that cannot be: "
            f"{named}; repair or remove them, or leave them out by unreadable=skip "
            "(--data.unreadable=skip)."
        )
    rank_zero_warn(
        f"Images that cannot be read are left out: {len(bad)} of {len(files)}, {named}.",
        category=StableLightningWarning,
    )
    return [file for file in files if reasons[file] is None]


def _decoded(files: list[str]) -> dict[str, str | None]:
    """Why each file cannot be read, ``None`` for one that can; decoding leaves Python's lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(zip(files, pool.map(trouble_with, files), strict=True))


def _looks_whole(file: str) -> bool:
    """Whether a file begins as an image and ends as that kind of image ends."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(_HEAD)
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - _TAIL))
            tail = opened.read()
    except OSError:
        return False
    if head.startswith(b"\xff\xd8\xff"):  # JPEG
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" in tail
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return size >= int.from_bytes(head[4:8], "little") + 8
    if head.startswith(b"BM"):
        return size >= int.from_bytes(head[2:6], "little")
    return False
