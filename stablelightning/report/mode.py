"""Whether a run shall sync: what the recipe says, and what the environment says."""

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from stablelightning.errors import RecipeError

Mode = Literal["auto", "online", "offline", "disabled"]

# WANDB_MODE knows more words than our ``mode``; "dryrun" and "run" are its old ones.
_ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "shared": "shared",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_OWN_ARGUMENTS = frozenset(
    ["project", "name", "save_dir", "dir", "mode", "offline", "settings", "anonymous", "resume"]
)


def check_arguments(mode: str, patience: float, options: Mapping[str, Any] | None) -> None:
    """Refuse arguments of ``RunLogger`` that cannot be meant.

    Args:
        mode: one of :data:`Mode`.
        patience: seconds; > 0.
        options: further arguments, none of which ``RunLogger`` has itself.

    Raises:
        RecipeError: one is out of its range.

    Example:
        >>> check_arguments("auto", 10.0, {"tags": ["first"]})
    """
    if mode not in get_args(Mode):
        raise RecipeError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
    if not patience > 0:
        raise RecipeError(
            f"patience must be > 0 seconds, got {patience}; to log without a network, set mode to "
            "offline."
        )
    if taken := sorted(_OWN_ARGUMENTS & set(options or {})):
        raise RecipeError(
            f"options must not hold {', '.join(taken)}, which RunLogger sets itself; "
            "use its own arguments project, name, save_dir and mode."
        )


def wanted_mode(mode: Mode) -> str:
    """The mode that counts: ``WANDB_MODE`` where it is set, else the recipe's.

    Args:
        mode: what the recipe says.

    Returns:
        ``"auto"``, ``"online"``, ``"shared"``, ``"offline"`` or ``"disabled"``.

    Raises:
        RecipeError: ``WANDB_MODE`` is none of wandb's words.
    """
    environment = os.environ.get("WANDB_MODE")
    if not environment:
        return mode
    if environment not in _ENVIRONMENT_MODES:
        raise RecipeError(
            f"WANDB_MODE must be one of {', '.join(_ENVIRONMENT_MODES)}, got {environment!r}; "
            "set it to one of these, or unset it."
        )
    return _ENVIRONMENT_MODES[environment]
