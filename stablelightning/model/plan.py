"""Choosing an engine: what ``auto`` does, and why, in words.

The first call on a model surveys one pass; the choice is remembered with the model and made again
when the inputs' shapes, the modules or their rates change. It rests on counted work, never on a
clock: the same call draws the same samples every time.
"""

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.model.engines import Sampled
from stablelightning.model.trust import is_trusted

#: Largest tensor of the live part that is worth batching at all (beyond it, allocation costs more
#: than Python does), and the size up to which more than eight samples share a pass.
_LARGEST = {"cpu": 32 << 20, "cuda": 1 << 30}
_SMALL = {"cpu": 4 << 20, "cuda": 32 << 20}

#: Samples per pass where the live part is not small; the peak memory of 512 samples is that of 8.
_USUAL_CHUNK = 8
_LARGEST_CHUNK = 64

#: What drawing a mask element from integers saves, and what watching a call for dropout costs.
_CHEAP_DRAW_SAVES = 6e-9
_WATCHING_COSTS = 5e-6

#: What one operation costs more under vmap than plainly, in seconds.
_VMAP_OVERHEAD = 12e-6


@dataclass(frozen=True)
class Plan:
    """How a model is sampled.

    Args:
        engine: ``"vmap"``, ``"repeat"`` or ``"replay"``.
        chunk: samples per pass.
        reason: why, in words.
        out_of_place: in-place dropout may be done out of place.
        cheap: draw masks from integers; not worth its Python in a small model.
    """

    engine: str
    chunk: int
    reason: str = ""
    out_of_place: bool = False
    cheap: bool = True

    def describe(self) -> str:
        """The engine's name, with the reason behind it if there is one."""
        return f"{self.engine} ({self.reason})" if self.reason else self.engine

    def limited(self, chunk_size: int | None) -> "Plan":
        """The same plan with at most ``chunk_size`` samples per pass."""
        if chunk_size is None or chunk_size >= self.chunk:
            return self
        return replace(self, chunk=chunk_size)


def chunk_for(bytes_per_sample: float, device: torch.device) -> int:
    """Samples per pass for a live part whose largest tensor takes this many bytes a sample.

    Returns:
        At least 0; 0 or 1 says that samples are better drawn one by one.
    """
    kind = device.type if device.type in _SMALL else "cpu"
    each = max(bytes_per_sample, 1)
    usual = min(_USUAL_CHUNK, int(_LARGEST[kind] // each))
    return min(_LARGEST_CHUNK, max(usual, int(_SMALL[kind] // each)))


def largest_for(number: int, device: torch.device) -> float:
    """Most bytes of one live tensor for which ``number`` samples may share a pass."""
    kind = device.type if device.type in _SMALL else "cpu"
    if number <= _USUAL_CHUNK:
        return float(_LARGEST[kind])
    return float(_SMALL[kind])


def overhead_dominates(operations: int, prefix_work: float, samples: int) -> bool:
    """Whether repeating the prefix for every sample costs less than vmap adds per operation."""
    return (samples - 1) * prefix_work < operations * _VMAP_OVERHEAD


def cheap_draws_pay(drawn: int, operations: int) -> bool:
    """Whether cheap masks for ``drawn`` elements save more than watching for dropout costs."""
    return drawn * _CHEAP_DRAW_SAVES > operations * _WATCHING_COSTS


def first_chunk(samples: int) -> int:
    """Samples per pass of the survey."""
    return min(samples, _LARGEST_CHUNK)


_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Plan]] = weakref.WeakKeyDictionary()

#: Plans kept per model: shapes of batches (the last is often smaller), not a history.
_PLANS_KEPT = 32


def remembered(model: nn.Module, key: Any) -> Plan | None:
    """The plan made for this model under this key, if there is one."""
    return _PLANS.get(model, {}).get(key)


def remember(model: nn.Module, key: Any, plan: Plan) -> Plan:
    """Keep a plan with the model."""
    plans = _PLANS.setdefault(model, {})
    if len(plans) >= _PLANS_KEPT:
        plans.clear()
    plans[key] = plan
    return plan


def plan_key(sampled: Sampled, samples: int, limit: int | None) -> Any:
    """What a plan depends on: the call, shapes, modules and their settings, precision."""
    shapes = tuple(
        (x.shape, x.dtype, x.device) if isinstance(x, Tensor) else _plain(x) for x in sampled.leaves
    )
    found = sampled.found
    call = _identity(sampled.function), tuple(sampled.inputs[1])
    modules = tuple([(id(m), type(m)) for m in found.modules])
    settings = tuple([_plain_settings(m) for m in found.modules if not is_trusted(m)])
    live = tuple([(id(m), vars(m).get("p"), vars(m).get("inplace")) for m in found.flagged])
    calls = tuple(map(id, found.functional))
    precision = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return call, shapes, samples, limit, modules, settings, live, calls, precision


_PLAIN = (bool, int, float, str)


def _plain(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else type(value)


def _identity(function: Any) -> Any:
    """The same for a lambda that is written once and made on every call."""
    if isinstance(function, nn.Module):
        return id(function)
    plain = getattr(function, "__func__", function)
    cells = getattr(plain, "__closure__", None) or ()
    closed_over = tuple([_content(cell) for cell in cells])
    code = getattr(plain, "__code__", None) or id(function)
    return code, id(getattr(function, "__self__", None)), closed_over


def _content(cell: Any) -> Any:
    try:
        return id(cell.cell_contents)
    except ValueError:  # not yet filled
        return None


def _plain_settings(module: nn.Module) -> tuple[Any, ...]:
    """Switches that a user's own forward may read."""
    return tuple(
        [
            value
            for name, value in vars(module).items()
            if isinstance(value, _PLAIN) and name != "training"
        ]
    )
