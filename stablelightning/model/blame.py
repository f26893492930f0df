"""Why a training step went wrong: the first thing that explains it, and the evidence for it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from stablelightning.model.first_fault import FirstFault, first_backward_fault, first_fault
from stablelightning.model.generators import preserved_generators
from stablelightning.model.modules import parameters_of
from stablelightning.model.operations import is_collective
from stablelightning.model.preserve import preserved
from stablelightning.model.step import TrainingStep
from stablelightning.model.suspects import (
    LARGE_GAIN,
    RAISED,
    BadRows,
    bad_rows,
    distance_from,
    largest_gain,
    largest_gradient,
)
from stablelightning.words import reason_of

#: The kinds of causes.
POISONED = "poisoned batch"
OVERFLOW = "overflow in half precision"
RATE = "learning rate too high"
WEIGHTS = "weights too large"
DIVISION = "division by a vanishing value"
OUTPUT = "non-finite output"
SPIKE = "spike"
UNKNOWN = "unknown"

#: Smaller divisors make quotients that leave float32, or squares of them that do.
VANISHING = 1e-18

#: Operations whose slope is infinite where something vanishes.
_STEEP = frozenset(
    (
        *("sqrt", "rsqrt", "div", "reciprocal", "log", "log2", "log10", "pow", "norm", "acos"),
        *("asin", "atan2", "std", "var", "linalg_vector_norm", "cdist", "prod", "logit"),
    )
)

#: Rows that a message names.
_NAMED = 8


@dataclass(frozen=True)
class Cause:
    """Why a step went wrong.

    Args:
        kind: one of the constants of this module, such as ``"poisoned batch"``.
        module: dotted name of the module at fault; empty where it is none, or the whole model.
        message: one sentence.
        evidence: numbers and names, plain types only: ``rows`` (positions in the batch),
            ``operation``, ``ratio``, ``gain``, ``moved`` and so on.
    """

    kind: str
    module: str = ""
    message: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


def cause_of(
    model: nn.Module,
    batch: Any,
    *,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    earlier: Mapping[str, Tensor] | None = None,
    usual: Sequence[float] = (),
) -> Cause:
    """Find out why a training step on ``batch`` went wrong, with the weights as before it.

    Runs the step again, watched, a few times at most. The model is left as it was, to the bit:
    weights, buffers, gradients, flags, attributes and generators. What the step needs other
    processes for (a batch norm over all of them, a gathered loss) is not run; then only the batch
    and the weights are looked at.

    Looked for, in this order: rows of the batch that are not finite, or far off; weights that are
    not finite; the operation that makes the first number that is not, forward and backward, and
    whether it only does so in half precision, or because it divides by something that vanishes;
    whether earlier weights fare well on these rows (then training went wrong before, mostly by
    too high a rate); weights that are too large. If nothing of the kind explains it, the batch
    is a spike: which of its rows made it cannot be known of a loss in general, and is not said.

    Args:
        model: a LightningModule, or any module whose step can be made up from the batch.
        batch: as ``training_step`` gets it, on the model's device.
        context: makes the context in which steps run, such as autocast.
        earlier: good weights from before by their names, as a snapshot holds them.
        usual: largest absolute value of a usual batch, for each of its floating tensors.

    Returns:
        Always a cause; ``"unknown"`` with the reason where the step could not be run again.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> rows = torch.ones(3, 2)
        >>> rows[1] = float("inf")
        >>> cause_of(net, (rows, torch.zeros(3, 2))).message
        'row 1 of the 3 of the batch is not finite'
    """
    rows = bad_rows(batch, usual)
    if rows is not None and rows.infinite:
        return _poisoned(rows)
    try:
        with preserved(model), torch.enable_grad(), _alone():
            found = _found_by_running(_Case(model, batch, context, earlier), rows)
    except _OthersNeededError:
        found = None
    except Exception as error:  # whatever a step does that is run once more
        reason = reason_of(error)
        found = Cause(UNKNOWN, "", f"the step could not be run again ({reason})")
    if found is not None and found.kind != UNKNOWN:
        return found
    if rows is not None:
        return _poisoned(rows)
    return _large_weights(model) or found or Cause(UNKNOWN, "", "other processes take part in it")


@dataclass(frozen=True)
class _Case:
    model: nn.Module
    batch: Any
    context: Callable[[], AbstractContextManager[Any]]
    earlier: Mapping[str, Tensor] | None

    def step(self, *, full_precision: bool = False) -> TrainingStep:
        """The step, on rows of its own: it may write into them."""
        batch = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self.batch)
        return _StepIn(self.model, batch, partial(self._inside, full_precision))

    @contextmanager
    def _inside(self, full_precision: bool) -> Iterator[None]:
        kind = next(self.model.parameters()).device.type
        with self.context():
            if full_precision:
                with torch.autocast(kind, enabled=False):
                    yield
            else:
                yield


class _StepIn(TrainingStep):
    """A training step that runs in a context."""

    def __init__(
        self, model: nn.Module, batch: Any, inside: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(model, batch)
        self._inside = inside

    def run(self) -> Tensor:
        with self._inside():
            return super().run()


def _found_by_running(case: _Case, rows: BadRows | None) -> Cause | None:
    forward = first_fault(case.model, case.step())
    fault = forward or _backward_fault(case)
    if fault is not None and fault.operation == "parameter":
        where = f"{fault.module}.{fault.name}".lstrip(".")
        evidence = {"operation": fault.operation, "name": where}
        return Cause(OUTPUT, fault.module, f"{where} was not finite before the step", evidence)
    if rows is not None:
        return _poisoned(rows)
    if fault is None:
        return _raised_by_training(case) or _large_weights(case.model) or _spike(case)
    return (
        _overflow(case, fault, again=forward is not None)
        or _division(fault)
        or _raised_by_training(case)
        or _large_weights(case.model)
        or _fault(fault)
    )


def _backward_fault(case: _Case) -> FirstFault | None:
    step = case.step()
    return first_backward_fault(case.model, step) if _requires_gradients(case.model) else None


def _requires_gradients(model: nn.Module) -> bool:
    return any(p.requires_grad for p in parameters_of(model))


def _poisoned(rows: BadRows) -> Cause:
    number = len(rows.rows)
    if number == rows.of:
        who = f"all {rows.of} rows of the batch are"
    elif number == 1:
        who = f"row {rows.rows[0]} of the {rows.of} of the batch is"
    else:
        more = ", ..." if number > _NAMED else ""
        named = ", ".join(map(str, rows.rows[:_NAMED]))
        who = f"{number} of the {rows.of} rows of the batch ({named}{more}) are"
    what = "not finite" if rows.infinite else f"{rows.ratio:.2g} times as large as is usual"
    evidence: dict[str, Any] = {"rows": rows.rows}
    if not rows.infinite:
        evidence["ratio"] = rows.ratio
    return Cause(POISONED, "", f"{who} {what}", evidence)


def _gradients_are_half(case: _Case, fault: FirstFault) -> bool:
    """Of a backward pass the type is not known; float16 is there by autocast or by the weights."""
    if not fault.operation.startswith("backward"):
        return False
    kind = next(case.model.parameters()).device.type
    with case.context():
        mixed = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return mixed or any(p.dtype is torch.float16 for p in parameters_of(case.model))


def _overflow(case: _Case, fault: FirstFault, *, again: bool) -> Cause | None:
    """Whether float32 would have held it; of weights in float16 that is not tried."""
    if fault.dtype is not torch.float16 and not _gradients_are_half(case, fault):
        return None
    tried = not any(p.dtype is torch.float16 for p in parameters_of(case.model))
    if tried:
        step = case.step(full_precision=True)
        search = first_fault if again else first_backward_fault
        if search(case.model, step) is not None:
            return None
    elif not fault.infinite:
        return None
    where = fault.module or "the model"
    held = ", and is finite in float32" if tried else ""
    message = f"{fault.operation} in {where} left the range of float16 (65504){held}"
    return Cause(OVERFLOW, fault.module, message, {"operation": fault.operation, "tried": tried})


def _division(fault: FirstFault) -> Cause | None:
    operation, where = fault.operation, fault.module or "the model"
    backward = operation.removeprefix("backward of ")
    if backward != operation:
        if backward not in _STEEP:
            return None
        message = f"the slope of {backward} in {where} is infinite where its argument vanishes"
        return Cause(DIVISION, fault.module, message, {"operation": operation})
    if not fault.smallest < VANISHING:
        return None
    message = f"{operation} in {where} was given {fault.smallest:.2g}"
    evidence = {"operation": operation, "smallest": fault.smallest}
    return Cause(DIVISION, fault.module, message, evidence)


def _raised_by_training(case: _Case) -> Cause | None:
    """Whether the same rows fare well with earlier weights, and not with these."""
    if case.earlier is None:
        return None
    moved = distance_from(case.model, case.earlier)
    if not moved > 0:
        return None
    now = _loss(case)
    with preserved(case.model, moved=True):
        _load(case.model, case.earlier)
        before = _loss(case)
    if not math.isfinite(before) or (math.isfinite(now) and now <= RAISED * abs(before)):
        return None
    message = (
        f"the loss of these rows is {now:.3g}, and {before:.3g} with earlier weights, which are "
        f"{moved:.2g} of their size away: training raised it"
    )
    return Cause(RATE, "", message, {"loss": now, "earlier_loss": before, "moved": moved})


def _loss(case: _Case) -> float:
    """With the same random draws at each call: two weights are compared, not two masks."""
    with torch.no_grad(), preserved_generators(0):
        return float(case.step().run())


@torch.no_grad()
def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kept = weights.get(name)
        if kept is not None and kept.shape == tensor.shape:
            tensor.copy_(kept)


def _large_weights(model: nn.Module) -> Cause | None:
    name, gain = largest_gain(model)
    if math.isfinite(gain) and gain < LARGE_GAIN:
        return None
    message = f"the weights of {name or 'the model'} multiply their input by about {gain:.3g}"
    return Cause(WEIGHTS, name, message, {"gain": gain})


def _fault(fault: FirstFault) -> Cause:
    where = fault.module or "the model"
    what = "infinity" if fault.infinite else "NaN"
    message = f"{fault.operation} in {where} makes the first {what}"
    if fault.lowest < 0:
        message += f": it was given {fault.lowest:.3g}, and takes nothing below zero"
    return Cause(OUTPUT, fault.module, message, {"operation": fault.operation})


def _spike(case: _Case) -> Cause:
    """Nothing explains it: say how large it is, and where the gradient is largest."""
    loss = case.step().run()
    evidence: dict[str, Any] = {"loss": float(loss.detach())}
    name, share = "", math.nan
    parameters = parameters_of(case.model)
    if loss.requires_grad:
        wanted = [p for p in parameters if p.requires_grad]
        found = dict(
            zip(map(id, wanted), torch.autograd.grad(loss, wanted, allow_unused=True), strict=True)
        )
        name, share = largest_gradient(case.model, [found.get(id(p)) for p in parameters])
    message = f"a loss of {evidence['loss']:.3g} on rows none of which stands out by its values"
    if math.isfinite(share):
        message += f"; {share:.0%} of the gradient's square is that of {name or 'the model'}"
        evidence["gradient_share"] = share
    return Cause(SPIKE, name, message, evidence)


class _OthersNeededError(BaseException):
    """Ends a step that would wait for other processes; no model's ``except`` swallows it."""


class _Alone(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if is_collective(func):
            raise _OthersNeededError
        return func(*args, **(kwargs or {}))


@contextmanager
def _alone() -> Iterator[None]:
    """Nothing inside talks to other processes, which are not here."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield
        return
    with _Alone():  # type: ignore[no-untyped-call]
        yield
