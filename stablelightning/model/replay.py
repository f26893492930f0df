"""Sampling by replay: the deterministic prefix of a model runs once, and every sample is exact.

The first pass records each operation up to the first random draw (the tape). Later passes run the
same Python, but each operation of the prefix is *checked* against the tape (overload, arguments by
identity and layout, constants by value) and answered from it; from the first random draw on
everything runs for real. The samples are therefore bit-identical to those of the plain loop.

When a check fails (a model that counts its calls, builds a cache, branches on Python's ``random``)
nothing is run twice: the prefix is recomputed on the tape's own memory up to that point, and the
pass goes on for real from the very operation that differed. The result is still that of the loop.
"""

import weakref
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stablelightning.model.generators import GeneratorWatch
from stablelightning.model.operations import is_collective, may_draw, storage_key, written_tensors
from stablelightning.model.shortcuts import Shortcuts
from stablelightning.model.tape import CannotReplay, Given, Made, Operation, Tape

#: Ways in which Python reads or shares memory without an operation that a mode can see.
_HOST_READS = frozenset(
    getattr(Tensor, name)
    for name in (
        "__deepcopy__",
        "__format__",
        "__reduce_ex__",
        "__repr__",
        "__array__",
        "__dlpack__",
        "data_ptr",
        "numpy",
        "storage",
        "tolist",
        "untyped_storage",
    )
)


class Replay:
    """Runs a model again and again, the deterministic prefix only once.

    Args:
        run: one pass; called in eval with its dropout live, under ``no_grad``.
        model: the model that it runs; its modules from torch.nn, torchvision and timm are skipped
            as a whole where the prefix contains them.
        inputs: what it is run on; like weights, not compared by value.
        alone: whether ``run`` is a call of the model, with no other code around it.

    Attributes:
        gave_up: why the prefix is no longer replayed, in words; ``None`` while it is.
        took_another_path: whether a later call did not begin like the first.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        model: nn.Module,
        inputs: Iterable[Any] = (),
        *,
        alone: bool = False,
    ) -> None:
        self._run = run
        self._shortcuts = Shortcuts(model, alone=alone)
        given = chain(model.parameters(), model.buffers(), inputs)
        self._known = frozenset(storage_key(x) for x in given if _has_memory(x))
        self._tape: Tape | None = None
        self._started = False
        self.gave_up: str | None = None
        self.took_another_path = False

    def __call__(self) -> Any:
        """One pass, exactly as the plain call would have made it."""
        if not self._started:
            self._started = True
            return self._record()
        if self._tape is None:
            return self._run()
        return self._replay(self._tape)

    def close(self) -> None:
        """Let go of the tape; to be called at the end, also after an exception."""
        tape, self._tape = self._tape, None
        if tape is not None:
            tape.release()

    def _record(self) -> Any:
        recorder = Recorder(Tape(self._known))
        with self._shortcuts.recorded(recorder), recorder, _HostReads(recorder):
            output = self._run()
        self.gave_up = recorder.refused or recorder.spoiled
        if self.gave_up is None and recorder.tape.frontier is not None:
            self._tape = recorder.tape
            recorder.renew()
            recorder.tape.leave_to_others()
        return output

    def _replay(self, tape: Tape) -> Any:
        player = Player(tape)
        with self._shortcuts.taken(player), player, _HostReads(player):
            output = self._run()
        player.finish(output)
        if player.diverged is None and player.spoiled is None:
            player.renew()
            if tape.leave_to_others():
                player.spoiled = "the forward kept another tensor on a later call"
        self.gave_up = player.diverged or player.spoiled
        if player.diverged is not None:
            self.took_another_path, self._tape = True, None
        elif player.spoiled is not None:
            self.close()
        return output


class _Watcher(TorchDispatchMode):
    """What recording and playing share: after the frontier, taped memory is kept as it was."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self.spoiled: str | None = None
        self._saved: dict[int, Tensor] = {}

    def protect(self, tensors: list[Tensor]) -> None:
        """Remember taped memory that is about to be written by what comes after the frontier."""
        for tensor in tensors:
            key = storage_key(tensor)
            if key in self.tape.alive and key not in self._saved:
                self._saved[key] = self.tape.alive[key].clone()
            elif key in self.tape.given:
                self.spoiled = "the forward writes into memory that its beginning reads"

    def renew(self) -> None:
        """Go on with taped memory as it was at the frontier; what was written stays as written."""
        for key, whole in self._saved.items():
            self.tape.renew(key, whole)

    def host_read(self, tensor: Tensor) -> None:
        """Called before Python reads memory behind the back of the operations."""
        raise NotImplementedError


class Recorder(_Watcher):
    """Records the first pass."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.refused: str | None = None
        self._start = GeneratorWatch()

    @property
    def finished(self) -> bool:
        """Whether the prefix is over, or given up on."""
        return self.refused is not None or self.tape.frontier is not None

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.refused is not None:
            return func(*args, **kwargs)
        if self.tape.frontier is not None:
            self.protect(written_tensors(func, args, kwargs))
            return func(*args, **kwargs)
        try:
            operation = self._describe(func, args, kwargs)
        except CannotReplay as reason:
            return self._refuse(reason, lambda: func(*args, **kwargs))
        draws = may_draw(func) or any(isinstance(v, torch.Generator) for v in kwargs.values())
        if draws:
            return self._maybe_frontier(operation, args, kwargs)
        output = func(*args, **kwargs)
        return self._add(operation, args, output)

    def _describe(self, func: OpOverload, args: Any, kwargs: Any) -> Operation:
        if is_collective(func):
            raise CannotReplay(f"{func} talks to other processes")
        operation = self.tape.describe(func, args, kwargs)
        for tensor in written_tensors(func, args, kwargs):
            if not self.tape.owns(tensor):
                raise CannotReplay(f"{func} writes into memory that lives on after the pass")
        return operation

    def _maybe_frontier(self, operation: Operation, args: Any, kwargs: Any) -> Any:
        before = {storage_key(t): t.clone() for t in written_tensors(operation.op, args, kwargs)}
        targets = written_tensors(operation.op, args, kwargs)
        generators = [v for v in kwargs.values() if isinstance(v, torch.Generator)]
        states = [g.get_state() for g in generators]
        moved_unseen = self._start.moved()
        watch = GeneratorWatch()
        output = operation.op(*args, **kwargs)
        own = any(
            not torch.equal(g.get_state(), s) for g, s in zip(generators, states, strict=True)
        )
        if not own and not watch.moved():
            return self._add(operation, args, output)
        if moved_unseen:
            return self._refuse(
                "a random number was drawn outside torch's operations", lambda: output
            )
        try:
            self.tape.close(operation)
        except CannotReplay as reason:
            return self._refuse(reason, lambda: output)
        for tensor in targets:  # the draw itself wrote: remember what was there before
            key = storage_key(tensor)
            whole = self.tape.alive[key].clone()
            view = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                whole.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
            )
            view.copy_(before[key])
            self._saved.setdefault(key, whole)
        return output

    def _add(self, operation: Operation, args: Any, output: Any) -> Any:
        try:
            self.tape.add(operation, args, output)
        except CannotReplay as reason:
            return self._refuse(reason, lambda: output)
        return output

    def _refuse(self, reason: object, then: Callable[[], Any]) -> Any:
        self.refused = str(reason)
        self.tape = Tape()  # let go of the memory
        return then()

    def host_read(self, tensor: Tensor) -> None:
        """See :meth:`_Watcher.host_read`."""
        if self.refused is not None:
            return
        if self.tape.frontier is not None:
            self.protect([tensor])
        elif self.tape.owns(tensor):
            self._refuse("Python reads or shares a tensor's memory (.numpy(), .tolist())", int)


class Player(_Watcher):
    """Answers for the prefix on every later pass."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.diverged: str | None = None
        self.position = 0
        self._end = len(tape.operations)
        # Weakly: torch's factories copy the handle of a result that somebody else holds.
        self._objects: list[Any] = [_nobody] * len(tape.values)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        position = self.position
        if position < self._end and self.diverged is None:
            operation = self.tape.operations[position]
            if (
                func is operation.op
                and self.agree(operation.args, args)
                and (not (kwargs or operation.kwargs) or self.agree(operation.kwargs, kwargs or {}))
            ):
                self.position = position + 1
                return self._answer(operation, args)
            self._diverge(func)
        kwargs = kwargs or {}
        if self.diverged is not None:
            return func(*args, **kwargs)
        if position == self._end:
            frontier = self.tape.frontier
            assert frontier is not None
            self.position += 1
            if func is not frontier.op or not self._same_tensors(frontier.args, args):
                self._diverge(func)
                return func(*args, **kwargs)
        written = written_tensors(func, args, kwargs)
        if written:
            self.protect(written)
        if any(storage_key(t) in self.tape.dead for t in _tensors(args)):
            self._revive()
        return func(*args, **kwargs)

    def agree(self, want: Any, have: Any) -> bool:
        """Whether what a call is given now is what it was given on tape."""
        kind = type(want)
        if kind is Made:
            return isinstance(have, Tensor) and (
                self._objects[want.number]() is have or want.is_same(have)
            )
        if kind is Given:
            return isinstance(have, Tensor) and want.is_same(have)
        if kind is tuple or kind is list:
            return len(want) == len(have) and all(map(self.agree, want, have))
        if kind is dict:
            return want.keys() == have.keys() and all(self.agree(want[k], have[k]) for k in want)
        if want is have:
            return True
        return type(have) is kind and (bool(want == have) or (want != want and have != have))

    def _same_tensors(self, want: Any, have: Any) -> bool:
        pairs = zip(want, have, strict=False)
        return all(self.agree(w, h) for w, h in pairs if isinstance(w, Made | Given))

    def _answer(self, operation: Operation, args: Any) -> Any:
        answers = []
        for output, position in zip(operation.outputs, operation.returned, strict=True):
            if position is not None:
                answers.append(args[position])
            elif isinstance(output, Made):
                # A fresh alias: Python may hang attributes on it, or keep it.
                alias = output.template.detach()  # type: ignore[union-attr]
                self._objects[output.number] = weakref.ref(alias)
                answers.append(alias)
            else:
                answers.append(output.template.detach() if isinstance(output, Given) else output)
        return operation.many(answers) if operation.many else answers[0]

    def _diverge(self, func: OpOverload) -> None:
        if self.diverged is None:
            self.diverged = f"the forward took another path on a later call (at {func})"
            self.tape.recompute(min(self.position, self._end))

    def _revive(self) -> None:
        """Something that was unreachable on the first pass is read on this one."""
        self.diverged = "the forward kept another tensor on a later call"
        self.tape.recompute(self._end, keep_alive=True)

    def host_read(self, tensor: Tensor) -> None:
        """See :meth:`_Watcher.host_read`."""
        if self.diverged is not None:
            return
        if self.position < self._end:
            self._diverge(torch.ops.aten.alias.default)
        elif storage_key(tensor) in self.tape.dead:
            self._revive()
        else:
            self.protect([tensor])

    def finish(self, output: Any) -> None:
        """After the pass: nothing that is returned may be a stand-in."""
        if self.diverged is not None:
            return
        if self.position <= self._end:
            self._diverge(torch.ops.aten.alias.default)
        elif any(storage_key(t) in self.tape.dead for t in _tensors(tree_leaves(output))):
            self._revive()


def _has_memory(x: Any) -> bool:
    """Not a lazy parameter, and not one that code of its own stands behind."""
    return type(x) in (Tensor, nn.Parameter, nn.Buffer) and x.layout is torch.strided


def _nobody() -> None:
    return None


class _HostReads(TorchFunctionMode):
    """Tells a watcher before Python reads memory behind the back of the operations."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HOST_READS:
            self._watcher.host_read(args[0])
        return func(*args, **(kwargs or {}))


def _tensors(args: Any) -> list[Tensor]:
    found = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, list | tuple):
            found += [a for a in arg if isinstance(a, Tensor)]
    return found
