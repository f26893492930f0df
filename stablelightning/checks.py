"""Checks of settings that many constructors share."""

from typing import Any

from stablelightning.errors import RecipeError


def check_whole(name: str, value: Any, *, least: int, hint: str = "") -> None:
    """Refuse what is no whole number (``True`` is none), or too small a one.

    Args:
        name: of the setting, for the message.
        value: as it was given.
        least: the smallest that is taken.
        hint: what else is to be said; a part of a sentence.

    Raises:
        RecipeError: it is not.

    Example:
        >>> check_whole("window", 3, least=1)
        >>> check_whole("window", 0, least=1, hint="50 is usual")
        Traceback (most recent call last):
        ...
        stablelightning.errors.RecipeError: window must be a whole number >= 1, got 0; 50 is usual.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        end = f"; {hint}" if hint else ""
        raise RecipeError(f"{name} must be a whole number >= {least}, got {value!r}{end}.")
