"""What :func:`stablelightning.recommend_activation` says."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ActivationRecommendation:
    """An activation for a position, and why; ``print`` gives it in lines.

    Args:
        name: as :func:`stablelightning.swap_activations` takes it; for an output also
            ``"softmax"``, or ``"linear"`` for none.
        position: ``"hidden"`` or ``"output"``.
        reason: why this one, in words.
        initialization: the weights that go with it, in words.
        alternatives: other names, each with when to take it.
        notes: what else to look after.

    Example:
        >>> from stablelightning import recommend_activation
        >>> print(recommend_activation(recurrent=True))
        hidden: tanh
          because inside a recurrence the same layer is applied at every step, ...
          initialize: recurrent weights orthogonal, input weights Glorot, ...
          or relu: only with recurrent weights that start as the identity, and clipping
    """

    name: str
    position: str
    reason: str
    initialization: str
    alternatives: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and strings."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.position}: {self.name}", f"  because {self.reason}"]
        lines.append(f"  initialize: {self.initialization}")
        lines += [f"  or {name}: {when}" for name, when in self.alternatives.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
