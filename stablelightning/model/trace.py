"""Watching a forward pass: which operations ran, in which module, on which tensors.

A dispatch mode sees every aten operation of an eager model, whatever its Python looks like:
residuals, loops, functional calls. In-place writes and views are told apart by memory, so that the
trace reads as if every operation had made new values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._ops import OpOverload
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from stablelightning.errors import DataError, ModelError, StableLightningError
from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import (
    GeneratorWatch,
    HostGeneratorWatch,
    undisturbed_generators,
)
from stablelightning.model.inputs import arguments_of, check_device, leaves_of, tensors_in
from stablelightning.model.modules import modules_of, parameters_of
from stablelightning.model.operations import (
    is_collective,
    operation_kind,
    operation_name,
    overwritten_arguments,
    storage_key,
    written_tensors,
)
from stablelightning.model.overlap import Overlap, overlap
from stablelightning.model.stochastic import StochasticModules, sampling_mode
from stablelightning.words import reason_of

#: Modules whose kernels hide gates and time steps: each call counts as one operation.
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
#: Modules that take a signal: what they are given is one, though it be learned queries.
_TAKE_SIGNALS = (nn.Linear, _ConvNd, nn.LayerNorm, nn.MultiheadAttention, *RECURRENT)
#: Operations that take a tensor's shape and none of its numbers.
_NEW = (
    "empty_like",
    "full_like",
    "new_empty",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones_like",
    "rand_like",
    "randn_like",
    "zeros_like",
)


@dataclass(eq=False)
class Value:
    """A tensor at one moment of the forward.

    Args:
        tensor: the tensor; a later write in place may have changed its content.
        maker: the operation that made it; ``None`` for parameters, buffers and constants.
        name: of a parameter or buffer, its dotted name, also after a write into it; else "".
        moving: whether it is a signal: it depends on the model's inputs or on learned queries.
        users: the operations that read it, in order.
    """

    tensor: Tensor
    maker: "Operation | None"
    name: str = ""
    moving: bool = False
    users: list["Operation"] = field(default_factory=list)


@dataclass(eq=False)
class Operation:
    """One operation of a forward, with :class:`Value` in the place of every tensor.

    Args:
        number: position in the forward.
        op: the aten overload; ``None`` for an input of the model (learned queries that a layer
            reads among them), a recurrent module taken whole, or what a write in place does to
            another view of the same memory.
        kind: see :func:`~stablelightning.model.operations.operation_kind`; also ``input``.
        name: the operation's name, such as ``"relu"``.
        args: positional arguments.
        kwargs: keyword arguments.
        module: the innermost module that ran it, ``None`` outside of the model.
    """

    number: int
    op: OpOverload | None
    kind: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module | None
    outputs: list[Value] = field(default_factory=list)
    _read: list[Value] | None = field(default=None, repr=False)

    def inputs(self) -> list[Value]:
        """What it reads, in the order of its arguments; not what it writes over, as ``out=``."""
        if self._read is None:  # asked for many times, and the arguments stay
            self._read = self._values_read()
        return list(self._read)

    def _values_read(self) -> list[Value]:
        args, kwargs = self.args, self.kwargs
        over = () if self.op is None else overwritten_arguments(self.op)
        if over:
            args = tuple(a for position, a in enumerate(args) if position not in over)
            kwargs = {name: a for name, a in kwargs.items() if name not in over}
        return [v for v in leaves_of((args, kwargs)) if isinstance(v, Value)]


@dataclass(eq=False)
class Call:
    """One call of a module.

    Args:
        module: the module.
        inputs: the values among its arguments, positional before keywords.
        outputs: the values that it returned.
        start: number of the first operation that ran inside.
        stop: number after the last one.
    """

    module: nn.Module
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    start: int = 0
    stop: int = 0


@dataclass
class Trace:
    """A watched forward.

    Args:
        operations: in the order in which they ran.
        outputs: what the model returned.
        calls: of modules, in the order in which they ended.
        names: dotted name of every module (of a shared one, the first).
        notes: what could not be followed, in words.
    """

    operations: list[Operation] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    names: dict[nn.Module, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def watch(model: nn.Module, inputs: Any, *, call: Callable[..., Any] | None = None) -> Trace:
    """Run the model once in eval and write down what happened.

    Runs without gradients and with the fused encoder path off; flags, buffers, plain attributes of
    modules and generators are left as they were.

    Args:
        model: any eager module; compiled ones run eagerly.
        inputs: a tensor, a tuple or list to spread, or a dict of keywords.
        call: what is called instead of the model itself.

    Returns:
        A :class:`Trace`. It holds every tensor of the pass: as much memory as a training pass.

    Raises:
        DataError: the inputs do not fit the forward, or lie on another device.
        ModelError: the model is scripted: its operations cannot be told apart.

    Example:
        >>> trace = watch(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(1, 2))
        >>> [operation.name for operation in trace.operations]
        ['input', 't', 'addmm', 'relu']
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "watching a forward needs an eager module, got a scripted one; pass the original."
        )
    args, kwargs = arguments_of(inputs)
    check_device(model, (args, kwargs))
    watcher = _Watcher(model, (args, kwargs))
    lazy = any(is_lazy(p) for p in parameters_of(model))  # the pass draws their first numbers
    drawn, host = GeneratorWatch(), HostGeneratorWatch()
    everything = StochasticModules(modules=modules_of(model))
    with Footprint(model), undisturbed_generators(), sampling_mode(everything):
        with torch.no_grad(), watcher.listening(), watcher:
            try:
                output = (call or model)(*args, **kwargs)
            except StableLightningError:
                raise
            except Exception as error:
                raise DataError(
                    f"the example must fit the forward of {type(model).__name__}, which raised "
                    f"{type(error).__name__}: {reason_of(error)}; pass inputs as in training."
                ) from error
        if host.moved() or (drawn.moved() and not lazy):
            watcher.trace.notes.append("the forward draws random numbers in eval")
    watcher.trace.outputs = [watcher.value(t) for t in tensors_in(output)]
    return watcher.trace


class _Watcher(TorchDispatchMode):
    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(names={m: name for name, m in model.named_modules()})
        self._names = {id(t): name for name, t in model.named_parameters()}
        self._names.update({id(t): name for name, t in model.named_buffers()})
        self._value: dict[int, Value] = {}
        # Of each storage: what was held on it first, and every write into it.
        self._first: dict[int, list[Tensor]] = {}
        self._writes: dict[int, list[tuple[Tensor, Value]]] = {}
        self._seen: dict[int, int] = {}  # of each tensor: how many of the writes its value knows
        self._stack: list[Call] = []
        self._inside_recurrent = 0
        for tensor in [*parameters_of(model), *model.buffers()]:
            if not is_lazy(tensor):
                self.value(tensor)
        for tensor in tensors_in(inputs):
            self._add("input", "input", (), {}, [tensor]).outputs[0].moving = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._inside_recurrent:
            return output
        if is_collective(func):
            self._note("operations between processes are not followed")
        if operation_name(func) in ("_local_scalar_dense", "item", "nonzero", "is_nonzero"):
            self._note("the forward reads numbers back into Python: other inputs may go other ways")
        written = written_tensors(func, args, kwargs)
        results = tensors_in(output)
        results += [w for w in written if not any(w is r for r in results)]
        given = tuple(map(self._in_values, args))
        named = {key: self._in_values(a) for key, a in kwargs.items()}
        self._add(operation_kind(func), operation_name(func), given, named, results, op=func)
        for tensor in written:
            self._remember_write(tensor)
        return output

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor holds now."""
        tensor = _unwrapped(tensor)
        known = self._value.get(id(tensor)) or self._unheard_of(tensor)
        return self._after_writes(tensor, known) if self._writes else known

    def _or_value(self, leaf: Any) -> Any:
        return self.value(leaf) if isinstance(leaf, Tensor) else leaf

    def _in_values(self, given: Any) -> Any:
        # Most arguments are no containers, and need no pytree.
        nested = isinstance(given, list | tuple | dict)
        return tree_map(self._or_value, given) if nested else self._or_value(given)

    def _unheard_of(self, tensor: Tensor) -> Value:
        """A parameter, a constant, or a view that no operation made, as ``.data`` does."""
        name = self._names.get(id(tensor), "")
        for first in () if name else self._first.get(_memory(tensor), ()):
            if overlap(tensor, first) is not Overlap.NONE:
                kind = "view" if tensor.numel() == first.numel() else "slice"
                return self._add(kind, "alias", (self.value(first),), {}, [tensor]).outputs[0]
        value = Value(tensor, None, name)
        self._hold(tensor, value)
        return value

    def _hold(self, tensor: Tensor, value: Value) -> None:
        memory = _memory(tensor)
        if value.name or memory not in self._first:  # several parameters may lie in one storage
            self._first.setdefault(memory, []).append(tensor)
        self._value[id(tensor)] = value
        self._seen[id(tensor)] = len(self._writes.get(memory, ()))

    def _add(
        self,
        kind: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Tensor],
        op: OpOverload | None = None,
    ) -> Operation:
        module = self._stack[-1].module if self._stack else None
        number = len(self.trace.operations)
        operation = Operation(number, op, kind, name, args, kwargs, module)
        given = operation.inputs()
        for value in given:
            value.users.append(operation)
        moving = name not in _NEW and any(value.moving for value in given)
        for tensor in results:
            value = Value(tensor, operation, self._names.get(id(tensor), ""), moving)
            operation.outputs.append(value)
            self._hold(tensor, value)
        self.trace.operations.append(operation)
        return operation

    def _remember_write(self, written: Tensor) -> None:
        writes = self._writes.setdefault(_memory(written), [])
        writes.append((written, self._value[id(written)]))
        self._seen[id(written)] = len(writes)

    def _after_writes(self, tensor: Tensor, known: Value) -> Value:
        """The value of a view, once it is read, after writes into other views of its memory."""
        writes = self._writes.get(_memory(tensor), ())
        missed = []
        for written, new in reversed(writes[self._seen[id(tensor)] :]):
            shared = overlap(tensor, written)
            if shared is not Overlap.NONE:
                missed.append((written, new, shared))
            if shared is Overlap.ALL:
                break
        self._seen[id(tensor)] = len(writes)
        for written, new, shared in reversed(missed):
            if shared is Overlap.PART:
                operation = self._add("cat", "alias", (known, new), {}, [tensor])
            else:
                kind = "view" if tensor.numel() == written.numel() else "slice"
                operation = self._add(kind, "alias", (new,), {}, [tensor])
            known = operation.outputs[0]
        return known

    def _note(self, words: str) -> None:
        if words not in self.trace.notes:
            self.trace.notes.append(words)

    # ---- the modules -------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Follow which module runs, by hooks on every module of the model."""
        handles = []
        try:
            for module in self.trace.names:
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                handles.append(
                    module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
                )
                handles.append(
                    module.register_forward_hook(self._leave, prepend=True, always_call=True)
                )
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module not in self.trace.names:  # a replica, with the hooks of its original
            return
        start = len(self.trace.operations)
        read = [] if self._inside_recurrent else tensors_in((args, kwargs))
        if isinstance(module, _TAKE_SIGNALS):
            self._take_for_signals(read)
        self._stack.append(Call(module, [self.value(t) for t in read], start=start))
        self._inside_recurrent += isinstance(module, RECURRENT)

    def _take_for_signals(self, given: list[Tensor]) -> None:
        """Learned queries and constants that a layer reads are inputs of the model as well."""
        for tensor in given:
            value = self.value(tensor)
            if not value.moving and tensor.is_floating_point():
                operation = self._add("input", "input", (value,), {}, [_unwrapped(tensor)])
                operation.outputs[0].moving = True

    def _leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        if module not in self.trace.names or not self._stack:
            return
        call = self._stack[-1]
        if isinstance(module, RECURRENT):
            self._inside_recurrent -= 1
            if not self._inside_recurrent and output is not None:
                weights = tuple(self.value(p) for p in module.parameters())
                results = [_unwrapped(t) for t in tensors_in(output)]
                given = (*call.inputs, *weights)
                self._add("recurrent", type(module).__name__.lower(), given, {}, results)
        self._stack.pop()
        if not self._inside_recurrent:
            call.outputs = [self.value(t) for t in tensors_in(output)]
            call.stop = len(self.trace.operations)
            self.trace.calls.append(call)


def _memory(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor; of those without any that can be asked, their own."""
    return storage_key(tensor) if tensor.layout is torch.strided else id(tensor)


def _unwrapped(tensor: Tensor) -> Tensor:
    """What vmap, grad and their like hand to the operations in the place of their own handles."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor
