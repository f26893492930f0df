"""Checks of the settings that blocks and networks share, so that a bad recipe dies at once."""

from collections.abc import Sequence
from typing import Any

from stablelightning.errors import RecipeError


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Refuse a width, a count of channels or a stride below one.

    Raises:
        RecipeError: one is not positive.

    Example:
        >>> check_sizes(in_features=3, hidden=[8, 8])
    """
    for name, values in sizes.items():
        for value in [values] if isinstance(values, int) else values:
            if value < 1:
                raise RecipeError(f"{name} must be >= 1, got {value}; a layer needs a width.")


def check_dropout(rate: float, name: str = "dropout") -> None:
    """Refuse a rate that is no probability, or drops everything.

    Raises:
        RecipeError: the rate is outside [0, 1).

    Example:
        >>> check_dropout(0.5)
    """
    if not 0 <= rate < 1:
        raise RecipeError(
            f"{name} must be in [0, 1), got {rate}; 0 turns it off, 0.1 is a mild choice."
        )


def check_one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value that is not among the few that there are.

    Raises:
        RecipeError: it is none of them.

    Example:
        >>> check_one_of("batch_norm", "after", ("before", "after", None))
    """
    if value not in allowed:
        raise RecipeError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
