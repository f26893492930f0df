"""Which operation of a forward is the first to make a number that is not finite."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stablelightning.model.graph import Node
from stablelightning.model.operations import operation_name
from stablelightning.model.step import TrainingStep

#: Operations that write infinities on purpose: attention masks are made of them.
_ON_PURPOSE = frozenset(
    (
        *("fill", "full", "full_like", "masked_fill", "new_full", "scalar_tensor", "where"),
        *("empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "detach"),
        *("_to_copy", "clone", "copy", "triu", "tril"),
    )
)


#: Which argument of an operation must not vanish.
_DIVISORS = {
    **{"div": 1, "true_divide": 1, "fmod": 1, "remainder": 1, "addcdiv": 2},
    **{"reciprocal": 0, "rsqrt": 0, "log": 0, "log2": 0, "log10": 0, "pow": 0, "logit": 0},
}

#: Operations whose argument must not be negative.
_ROOTS = frozenset(("sqrt", "rsqrt", "log", "log2", "log10", "pow", "logit"))


@dataclass(frozen=True)
class FirstFault:
    """Where the first number that is not finite came from.

    Args:
        module: dotted name of the innermost module that ran the operation.
        operation: name of the operation, ``"backward of ..."`` where its gradient is at fault;
            ``"input"`` or ``"parameter"`` where the number was there before.
        name: of the parameter or buffer, if it is one.
        infinite: whether it is an infinity and not NaN.
        dtype: of the operation's output; ``None`` where no operation made it.
        smallest: the smallest absolute value of what the operation divided by, or took the
            logarithm or an inverse root of; NaN where it did nothing of the kind.
        lowest: the lowest value that it was given, where that must not be negative; NaN elsewhere.
    """

    module: str
    operation: str
    name: str = ""
    infinite: bool = False
    dtype: torch.dtype | None = field(default=None, repr=False, compare=False)
    smallest: float = field(default=math.nan, repr=False, compare=False)
    lowest: float = field(default=math.nan, repr=False, compare=False)


def first_fault(model: nn.Module, step: TrainingStep) -> FirstFault | None:
    """Run the step's forward once more and stop at the first number that is not finite.

    Args:
        model: the model; flags and generators are the caller's to restore.
        step: its training step; the loss is part of what is looked at.

    Returns:
        ``None`` if every number is finite this time.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> _ = net[0].weight.data.fill_(float("nan"))
        >>> step = TrainingStep(net, torch.zeros(3, 2))
        >>> first_fault(net, step)
        FirstFault(module='0', operation='parameter', name='weight', infinite=False)
    """
    for leaf in tree_leaves((step.inputs, step.target)):
        if isinstance(leaf, Tensor) and _is_bad(leaf):
            return FirstFault("", "input", infinite=not bool(torch.isnan(leaf).any()))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if _is_bad(tensor) and not _is_mask(name, tensor, model):
            owner, _, own = name.rpartition(".")
            return FirstFault(owner, "parameter", own, not bool(torch.isnan(tensor).any()))
    search = _Search(model)
    handles = [
        register_module_forward_pre_hook(search.enter),
        register_module_forward_hook(search.leave, always_call=True),
    ]
    try:
        with torch.no_grad(), search:
            step.run()
    except _Found:
        return search.found
    finally:
        for handle in handles:
            handle.remove()
    return search.found


def first_backward_fault(model: nn.Module, step: TrainingStep) -> FirstFault | None:
    """Run the step once more, and find the operation that first makes a gradient not finite.

    Args:
        model: a model whose forward is finite; flags and generators are the caller's to restore.
        step: its training step.

    Returns:
        ``None`` if every gradient is finite this time.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> step = TrainingStep(net, torch.zeros(3, 2), lambda output, target: output.sqrt().sum())
        >>> first_backward_fault(net, step)
        FirstFault(module='', operation='backward of sqrt', name='', infinite=True)
    """
    names = {module: name for name, module in model.named_modules()}
    owners: dict[Node, str] = {}

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in names:  # modules inside have left already, and taken theirs
            stops = {t.grad_fn for t in tree_leaves(args) if isinstance(t, Tensor)}
            owners.update(dict.fromkeys(_nodes(output, {*owners, *stops}), names[module]))

    handle = register_module_forward_hook(leave)
    try:
        loss = step.run()
    finally:
        handle.remove()
    found: list[FirstFault] = []
    for node in _nodes(loss, set()):
        node.register_hook(_gradient_check(node, owners.get(node, ""), found))
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(loss, parameters, allow_unused=True)
    return found[0] if found else None


def _nodes(tree: Any, stops: set[Node]) -> list[Node]:
    """The nodes of autograd's graph behind some tensors, up to those that stop the walk."""
    ends = [t.grad_fn for t in tree_leaves(tree) if isinstance(t, Tensor)]
    pending = [n for n in dict.fromkeys(ends) if n is not None and n not in stops]
    seen = set(pending)
    for node in pending:  # grows while it is read
        for following, _ in node.next_functions:
            if following is not None and following not in seen and following not in stops:
                seen.add(following)
                pending.append(following)
    return pending


def _gradient_check(node: Node, module: str, found: list[FirstFault]) -> Callable[..., None]:
    operation = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower()

    def check(given: Any, received: Any) -> None:
        bad = [t for t in given if isinstance(t, Tensor) and _is_bad(t)]
        if bad and not found and not any(isinstance(t, Tensor) and _is_bad(t) for t in received):
            infinite = not bool(torch.isnan(bad[0]).any())
            found.append(FirstFault(module, f"backward of {words}", infinite=infinite))

    return check


class _Found(BaseException):
    """Ends the forward; not an Exception, so that no model's ``except`` swallows it."""


class _Search(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: FirstFault | None = None
        self._names = {m: name for name, m in model.named_modules()}
        self._stack: list[str] = []

    def enter(self, module: nn.Module, _args: Any) -> None:
        if module in self._names:
            self._stack.append(self._names[module])

    def leave(self, module: nn.Module, *_: Any) -> None:
        if module in self._names and self._stack:
            self._stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = operation_name(func)
        if name in _ON_PURPOSE or self.found is not None:
            return output
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and _is_bad(leaf) and not _was_given(args, kwargs):
                infinite = not bool(torch.isnan(leaf).any())
                module = self._stack[-1] if self._stack else ""
                smallest, lowest = _read_arguments(name.removesuffix("_"), args)
                self.found = FirstFault(
                    module,
                    name,
                    infinite=infinite,
                    dtype=leaf.dtype,
                    smallest=smallest,
                    lowest=lowest,
                )
                raise _Found
        return output


def _read_arguments(name: str, args: tuple[Any, ...]) -> tuple[float, float]:
    """What was divided by, and the lowest value of what must not be negative; NaN if neither."""
    place = _DIVISORS.get(name, 0)
    if not (name in _DIVISORS or name in _ROOTS) or place >= len(args):
        return math.nan, math.nan
    value = args[place]
    if not isinstance(value, Tensor):
        return (abs(float(value)) if isinstance(value, int | float) else math.nan), math.nan
    if not value.numel() or value.is_complex():
        return math.nan, math.nan
    smallest = float(value.detach().abs().min()) if name in _DIVISORS else math.nan
    return smallest, float(value.detach().min()) if name in _ROOTS else math.nan


def _was_given(args: Any, kwargs: Any) -> bool:
    """Whether the operation was handed such a number (a mask); then it is not the first."""
    return any(isinstance(t, Tensor) and _is_bad(t) for t in tree_leaves((args, kwargs or {})))


def _is_mask(name: str, tensor: Tensor, model: nn.Module) -> bool:
    """A buffer of minus infinities and finite numbers is an attention mask."""
    is_buffer = all(tensor is not p for p in model.parameters())
    return is_buffer and not bool((torch.isnan(tensor) | (tensor == torch.inf)).any())


def _is_bad(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return False
    return not bool(torch.isfinite(tensor.detach()).all())
