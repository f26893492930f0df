"""What a cure did to a model, in words and as a plan that can be performed again."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from stablelightning.errors import CheckpointError

#: Where a checkpoint of a Trainer holds what was done to the structure of its model.
CHECKPOINT_KEY = "stable_treatments"

#: Where a model keeps what was done to its structure. It travels with copies of the model.
_RECORD = "_structural_treatments"


class NotSafe(Exception):
    """Why a cure leaves a model as it is, in words."""


@dataclass(frozen=True)
class Treatment:
    """What became of one cure.

    Args:
        cure: its name, such as ``"add-skips"``.
        done: whether the model was changed; ``False`` where it was left as it was.
        words: what was done, or why nothing was.
        modules: dotted names of what was changed.
        plan: what the structure needs to be changed again in the same way, in plain types; empty
            where the cure changed weights only, which a checkpoint holds by itself.

    Example:
        >>> print(Treatment("add-skips", False, "no run of layers keeps its shape"))
        add-skips left: no run of layers keeps its shape
    """

    cure: str
    done: bool
    words: str
    modules: tuple[str, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and for checkpoints."""
        return {**asdict(self), "modules": list(self.modules)}

    def __str__(self) -> str:
        return f"{self.cure} {'done' if self.done else 'left'}: {self.words}"


def recorded_treatments(model: nn.Module) -> list[dict[str, Any]]:
    """The structural changes that cures made to a model, in order, as plain types.

    Keep them beside the weights, and give them to
    :func:`stablelightning.model.cures.repeat_treatments` before loading the weights into a new
    model.

    Example:
        >>> recorded_treatments(nn.Linear(2, 2))
        []
    """
    return [dict(entry) for entry in vars(model).get(_RECORD, [])]


def record_treatment(model: nn.Module, cure: str, plan: dict[str, Any]) -> None:
    """Remember a structural change."""
    vars(model)[_RECORD] = [*vars(model).get(_RECORD, []), {"cure": cure, "plan": plan}]


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of a plan.

    Raises:
        CheckpointError: the model has no such module: the plan is another model's.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise CheckpointError(
            f"what the doctor changed must be there to be changed again, and "
            f"{type(model).__name__} has no module {name!r}; give the settings that the model was "
            "trained with."
        ) from error
