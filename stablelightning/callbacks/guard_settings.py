"""What the settings of a guard may be."""

from typing import Any

from stablelightning.errors import RecipeError


def check_threshold(threshold: Any) -> None:
    """Refuse what is no positive number; infinity is one."""
    if not _is_number(threshold) or not threshold > 0:
        raise RecipeError(
            f"threshold must be a number > 0 of robust standard deviations, got {threshold!r}; "
            "inf skips only what is not finite."
        )


def check_cut(cut: Any) -> None:
    """Refuse what is no share of the learning rate."""
    if not _is_number(cut) or not 0 < cut <= 1:
        raise RecipeError(
            f"cut must be in (0, 1], got {cut!r}; 1 goes back without a lower learning rate."
        )


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise RecipeError(f"{name} must be true or false, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
