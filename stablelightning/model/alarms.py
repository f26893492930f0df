"""What in the signals of a training run calls for an alarm, and what to do about it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: A layer whose weights moved less than this share of what the others moved stays where it started.
_STILL = 0.01
#: The others must have moved by this share of their initial norm; before that all stand still.
_MOVED = 1e-3
#: So many readings in a row, before a layer is said to be still or saturated: warm-up is no fault.
_PATIENCE = 3
#: Share of a layer's values in a flat end of its function at which it counts as saturated.
_SATURATED = 0.5


@dataclass(frozen=True)
class Alarm:
    """Something in a layer that training will not mend by itself.

    Args:
        code: ``"dead-units"``, ``"saturated-units"``, ``"layer-not-learning"`` or
            ``"non-finite-gradient"``.
        layer: dotted name.
        step: when it was seen, in the Trainer's steps.
        message: what was seen and what to do, in words.
        evidence: what was seen, in numbers.

    Example:
        >>> Alarm("dead-units", "net.0", 100, "...", {"dead": 0.5}).to_dict()["layer"]
        'net.0'
    """

    code: str
    layer: str
    step: int
    message: str
    evidence: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return asdict(self)


class AlarmRules:
    """Says each alarm once per layer; all state is plain.

    Args:
        dead_share: share of a layer's units whose death is an alarm, in (0, 1].

    Example:
        >>> rules = AlarmRules(dead_share=0.4)
        >>> signals = {"net.0": {"dead": 0.5, "died": 0.5, "full_window": 1.0}}
        >>> [alarm.code for alarm in rules.judge(100, signals)]
        ['dead-units']
        >>> rules.judge(150, signals)
        []
    """

    def __init__(self, *, dead_share: float) -> None:
        self.dead_share = dead_share
        self._said: list[str] = []
        self._in_a_row: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """What was said, and what is about to be."""
        return {"said": list(self._said), "in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._said = list(state["said"])
        self._in_a_row = dict(state["in_a_row"])

    def judge(
        self,
        step: int,
        signals: Mapping[str, Mapping[str, float]],
        *,
        may_saturate: Iterable[str] = (),
        may_rest: Iterable[str] = (),
    ) -> list[Alarm]:
        """Look at one reading.

        Args:
            step: when it was taken.
            signals: by layer: ``grad_norm``, ``update_ratio``, ``distance``, ``dead``, ``died``,
                ``full_window`` (1 once a whole window was seen), ``saturated``; each optional.
            may_saturate: layers that make the model's output.
            may_rest: layers of which parts are used rarely, such as embeddings.

        Returns:
            New alarms.
        """
        found = [
            *self._non_finite(step, signals),
            *self._dead(step, signals),
            *self._saturated(step, signals, set(may_saturate)),
            *self._still(step, signals, set(may_rest)),
        ]
        new = [alarm for alarm in found if _key(alarm.code, alarm.layer) not in self._said]
        self._said += [_key(alarm.code, alarm.layer) for alarm in new]
        return new

    def _non_finite(self, step: int, signals: Mapping[str, Mapping[str, float]]) -> list[Alarm]:
        broken = [n for n, s in signals.items() if not math.isfinite(s.get("grad_norm", 0.0))]
        if not broken:
            return []
        # Backward spreads it to every earlier layer: the last one is nearest to where it began.
        name = broken[-1]
        message = (
            f"the gradient of {name} is not finite (and of {len(broken) - 1} more layers); lower "
            "the learning rate, clip gradients, or look for a division or logarithm of zero."
        )
        return [Alarm("non-finite-gradient", name, step, message, {"layers": float(len(broken))})]

    def _dead(self, step: int, signals: Mapping[str, Mapping[str, float]]) -> list[Alarm]:
        alarms = []
        for name, seen in signals.items():
            dead, died = seen.get("dead", 0.0), seen.get("died", 0.0)
            if dead < self.dead_share or not seen.get("full_window"):
                continue
            if died >= dead / 2:
                cause = (
                    "most of them died in training, which points to the learning rate: lower it, "
                    "warm it up, or use a leaky activation"
                )
            else:
                cause = (
                    "most of them were dead at step 0, which points to the initialization, the "
                    "biases or the scale of the input: standardise it, and initialize the model"
                )
            message = f"{dead:.0%} of the units of {name} are dead ({died:.0%} died); {cause}."
            alarms.append(Alarm("dead-units", name, step, message, {"dead": dead, "died": died}))
        return alarms

    def _saturated(
        self, step: int, signals: Mapping[str, Mapping[str, float]], exempt: set[str]
    ) -> list[Alarm]:
        alarms = []
        for name, seen in signals.items():
            if "saturated" not in seen or name in exempt:
                continue
            share = seen["saturated"]
            if self._lasts("saturated-units", name, share >= _SATURATED):
                message = (
                    f"{share:.0%} of the activations of {name} are saturated, where gradients "
                    "vanish; scale its weights or its input down, lower the learning rate, or put "
                    "a norm before it."
                )
                evidence = {"saturated": share}
                alarms.append(Alarm("saturated-units", name, step, message, evidence))
        return alarms

    def _still(
        self, step: int, signals: Mapping[str, Mapping[str, float]], exempt: set[str]
    ) -> list[Alarm]:
        moved = {n: s["distance"] for n, s in signals.items() if "distance" in s}
        ratios = [s["update_ratio"] for s in signals.values() if "update_ratio" in s]
        if len(moved) < 2:
            return []
        others, usual = _typical(moved.values()), _typical(ratios)
        alarms = []
        for name, distance in moved.items():
            still = name not in exempt and others >= _MOVED and distance < _STILL * others
            # One that was unfrozen a moment ago is near its start, and on its way.
            ratio = signals[name].get("update_ratio", 0.0)
            still = still and (not ratios or ratio < _STILL * usual)
            if self._lasts("layer-not-learning", name, still):
                message = (
                    f"{name} has moved {distance:.1e} of its initial norm where the other layers "
                    f"moved {others:.1e}; see whether it is in an optimizer, whether its output "
                    "reaches the loss, and whether its gradient vanishes."
                )
                evidence = {"distance": distance, "others": others, "update_ratio": ratio}
                alarms.append(Alarm("layer-not-learning", name, step, message, evidence))
        return alarms

    def _lasts(self, code: str, layer: str, holds: bool) -> bool:
        key = _key(code, layer)
        if not holds:
            self._in_a_row.pop(key, None)
            return False
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1
        return self._in_a_row[key] >= _PATIENCE


def _key(code: str, layer: str) -> str:
    return f"{code} {layer}"


def _typical(values: Iterable[float]) -> float:
    """The upper quartile: what layers do that learn, even where half of them do not."""
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[math.ceil(0.75 * (len(finite) - 1))] if finite else 0.0
