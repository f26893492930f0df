"""The tape: the operations of a deterministic prefix, and what the rest of the pass can read."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from stablelightning.model.operations import storage_key

_Layout = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


class CannotReplay(Exception):
    """Why a pass cannot be put on tape, in words."""


def _layout(tensor: Tensor) -> _Layout:
    return int(tensor.storage_offset()), tensor.shape, tensor.stride(), tensor.dtype


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Made:
    """A tensor that the prefix made: a place in one of the tape's storages."""

    __slots__ = ("key", "layout", "number", "storage", "template")

    def __init__(self, number: int, storage: int, tensor: Tensor) -> None:
        self.number = number
        self.storage = storage
        self.layout = _layout(tensor)
        self.key = 0
        self.template: Tensor | None = None

    def is_same(self, other: Tensor) -> bool:
        """Whether ``other`` is this place: the same memory and layout."""
        return storage_key(other) == self.key and _layout(other) == self.layout


class Given:
    """A tensor from outside: a parameter, a buffer, an input, a constant made by the forward.

    Args:
        tensor: the tensor.
        watched: keep its value, and compare it on every pass: Python can write into memory that is
            neither a parameter nor an input in ways that leave no trace (NumPy, ``.data``).
    """

    __slots__ = ("layout", "pointer", "template", "value", "version")

    def __init__(self, tensor: Tensor, *, watched: bool) -> None:
        self.template = tensor
        self.layout = _layout(tensor)
        self.version = _version(tensor)
        self.pointer = tensor.data_ptr()
        self.value = tensor.clone() if watched else None

    def is_same(self, other: Tensor) -> bool:
        """Whether ``other`` is this tensor, unwritten since; or a constant of equal value."""
        if other is not self.template:  # another handle: a view of a weight, a constant made anew
            if other.device != self.template.device or _layout(other) != self.layout:
                return False
            if self.value is None and storage_key(other) != storage_key(self.template):
                return False
        elif other.data_ptr() != self.pointer:  # its .data was swapped
            return False
        if self.value is not None:
            return _equal(other, self.value)
        return _version(other) == self.version


def _equal(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


class Operation:
    """One call: its overload, what it was given, and what it gave."""

    __slots__ = ("args", "kwargs", "many", "op", "outputs", "returned")

    def __init__(self, op: OpOverload, args: Any, kwargs: Any) -> None:
        self.op = op
        self.args = args
        self.kwargs = kwargs
        self.many: type | None = None
        self.outputs: list[Any] = []
        self.returned: list[int | None] = []


class Tape:
    """Records a prefix; after :meth:`close`, holds what is needed to answer for it.

    Memory is held by weak reference while recording. What is alive at the first random draw is all
    that the rest can read, and is kept; everything else gets a stand-in of the same layout whose
    storage is empty, so that a replay needs no more memory than a pass.

    Args:
        known: keys of the memory of parameters, buffers and inputs, which is not compared by value.
    """

    def __init__(self, known: frozenset[int] = frozenset()) -> None:
        self.operations: list[Operation] = []
        self.given: set[int] = set()
        self._known = known
        self.frontier: Operation | None = None
        self.values: list[Made] = []
        self.alive: dict[int, Tensor] = {}
        self.dead: set[int] = set()
        self._weak: list[StorageWeakRef] = []
        self._bytes: list[tuple[int, torch.device]] = []
        self._storages: list[torch.UntypedStorage] = []
        self._number: dict[int, int] = {}
        self._objects: dict[int, tuple[weakref.ref[Tensor], Made]] = {}

    def owns(self, tensor: Tensor) -> bool:
        """Whether the prefix made the memory behind ``tensor``."""
        number = self._number.get(storage_key(tensor))
        return number is not None and not self._weak[number].expired()

    def describe(self, op: OpOverload, args: Any, kwargs: Any) -> Operation:
        """Describe a call before it runs.

        Raises:
            CannotReplay: an argument cannot be put on tape.
        """
        return Operation(op, self.describe_tree(args), self.describe_tree(kwargs))

    def add(self, operation: Operation, args: tuple[Any, ...], output: Any) -> None:
        """Record a call that has run.

        Raises:
            CannotReplay: its result cannot be put on tape.
        """
        operation.many = type(output) if isinstance(output, list | tuple) else None
        for leaf in output if operation.many else (output,):
            if not isinstance(leaf, Tensor):
                if isinstance(leaf, list | tuple):
                    raise CannotReplay(f"{operation.op} returns a nested structure")
                operation.returned.append(None)
                operation.outputs.append(leaf)
                continue
            position = next((i for i, a in enumerate(args) if a is leaf), None)
            operation.returned.append(position)
            operation.outputs.append(self._make(leaf, operation) if position is None else None)
        self.operations.append(operation)

    def close(self, frontier: Operation) -> None:
        """End the prefix at its first random draw.

        Raises:
            CannotReplay: an operation changed the size of memory that it was given.
        """
        self.frontier = frontier
        made: list[list[Made]] = [[] for _ in self._weak]
        for value in self.values:
            made[value.storage].append(value)
        for number, (weak, (size, device)) in enumerate(zip(self._weak, self._bytes, strict=True)):
            if weak.expired():
                storage = torch.UntypedStorage(size, device=device)
                self.dead.add(storage._cdata)
            else:
                storage = torch.UntypedStorage._new_with_weak_ptr(weak.cdata)
                if storage.nbytes() != size:
                    raise CannotReplay("an operation resized a tensor in place")
                self.alive[storage._cdata] = _whole(storage)
            self._storages.append(storage)
            for value in made[number]:
                self._place(value, storage)
            if storage._cdata in self.dead:  # one by one: together they would be a whole pass
                storage.resize_(0)
        self._objects.clear()

    def renew(self, key: int, whole: Tensor) -> None:
        """Go on with ``whole`` as the memory ``key``; whoever holds the old memory keeps it."""
        storage = whole.untyped_storage()
        self.alive[storage._cdata] = whole
        del self.alive[key]
        number = next(n for n, s in enumerate(self._storages) if s._cdata == key)
        self._storages[number] = storage
        for value in self.values:
            if value.storage == number:
                self._place(value, storage)

    def leave_to_others(self) -> bool:
        """Go on with memory of its own where somebody else holds the tape's, who keeps the old.

        What a forward kept of the prefix lies in the tape's memory, which is written when a later
        call takes another path and part of the prefix is computed again.

        Returns:
            Whether somebody holds a stand-in, which has no content: the tape must be released.
        """
        places = Counter(value.storage for value in self.values)
        for number, storage in enumerate(list(self._storages)):
            key = storage._cdata
            ours = 1 + places[number] + (key in self.alive)
            if torch._C._storage_Use_Count(key) <= ours:
                continue
            if key in self.dead:
                return True
            self.renew(key, self.alive[key].clone())
        return False

    def release(self) -> None:
        """Let go; stand-ins that somebody else still holds get what they stand for.

        A tensor that a forward kept on its module on a later call, or that the frames of an
        exception hold, outlives the replay, and reading an empty storage ends the process.
        """
        weak = {n: StorageWeakRef(s) for n, s in enumerate(self._storages) if s._cdata in self.dead}
        for value in self.values:
            value.template = None
        self._storages = [s for n, s in enumerate(self._storages) if n not in weak]
        if all(reference.expired() for reference in weak.values()):
            return
        kept = iter(self._storages)
        self._storages = [
            self._again(weak[n], n) if n in weak else next(kept) for n in range(len(self._weak))
        ]
        for value in self.values:
            self._place(value, self._storages[value.storage])
        self.recompute(len(self.operations), keep_alive=True)

    def _again(self, reference: StorageWeakRef, number: int) -> torch.UntypedStorage:
        size, device = self._bytes[number]
        if reference.expired():
            return torch.UntypedStorage(size, device=device)
        storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
        storage.resize_(size)
        return storage

    @staticmethod
    def _place(value: Made, storage: torch.UntypedStorage) -> None:
        offset, shape, stride, dtype = value.layout
        template = torch.empty(0, dtype=dtype, device=storage.device)
        value.template = template.set_(storage, offset, shape, stride)
        value.key = storage._cdata

    def recompute(self, upto: int, *, keep_alive: bool = False) -> None:
        """Fill the tape's memory with what it held before operation ``upto``.

        Args:
            upto: operations before this one are run again, on the tape's own memory.
            keep_alive: leave as it is the memory that was alive at the frontier.
        """
        kept = {key: whole.clone() for key, whole in self.alive.items()} if keep_alive else {}
        for storage, (size, _) in zip(self._storages, self._bytes, strict=True):
            if storage.nbytes() != size:
                storage.resize_(size)
        for operation in self.operations[:upto]:
            args, kwargs = tree_map(_template, (operation.args, operation.kwargs))
            results = operation.op(*args, **kwargs)
            results = results if operation.many else (results,)
            for output, result in zip(operation.outputs, results, strict=True):
                if isinstance(output, Made) and storage_key(result) != output.key:
                    assert output.template is not None
                    output.template.copy_(result)
        for key, whole in kept.items():
            self.alive[key].copy_(whole)

    def describe_tree(self, tree: Any) -> Any:
        """Describe the tensors in lists, tuples and dicts, as operations take them."""
        if isinstance(tree, Tensor):
            return self.describe_leaf(tree)
        if isinstance(tree, list | tuple):
            return type(tree)([self.describe_tree(item) for item in tree])
        if isinstance(tree, dict):
            return {key: self.describe_tree(item) for key, item in tree.items()}
        return tree

    def describe_leaf(self, leaf: Any) -> Any:
        """A tensor becomes its place on the tape, or a note of what was given; the rest stays."""
        if not isinstance(leaf, Tensor):
            return leaf
        if type(leaf) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise CannotReplay(f"a {type(leaf).__name__} runs code of its own")
        _check_strided(leaf)
        known = self._objects.get(id(leaf))
        if known is not None and known[0]() is leaf:
            return known[1]
        return self._value(leaf) if self.owns(leaf) else self._give(leaf)

    def _make(self, tensor: Tensor, operation: Operation) -> Made | Given:
        _check_strided(tensor)
        if not self.owns(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata in self.given:
                return self._give(tensor)  # a view of memory from outside
            self._number[storage._cdata] = len(self._weak)
            self._weak.append(StorageWeakRef(storage))
            self._bytes.append((storage.nbytes(), tensor.device))
        value = self._value(tensor)
        self._objects[id(tensor)] = (weakref.ref(tensor), value)
        return value

    def _give(self, tensor: Tensor) -> Given:
        key = storage_key(tensor)
        self.given.add(key)
        return Given(tensor, watched=key not in self._known)

    def _value(self, tensor: Tensor) -> Made:
        value = Made(len(self.values), self._number[storage_key(tensor)], tensor)
        self.values.append(value)
        return value


def _check_strided(tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise CannotReplay(f"a tensor has layout {tensor.layout}")


def _template(leaf: Any) -> Any:
    return leaf.template if isinstance(leaf, Made | Given) else leaf


def _whole(storage: torch.UntypedStorage) -> Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage, 0, (storage.nbytes(),), (1,))
