"""Skipping whole modules of a taped prefix, so that a replay does not pay for their Python.

Only modules whose code is known to be a function of its inputs and weights are skipped: those of
torch.nn, torchvision and timm, all the way down, without hooks. What a user wrote is always run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from stablelightning.model.modules import replaced_forwards
from stablelightning.model.tape import CannotReplay, Given, Made, Tape
from stablelightning.model.trust import is_trusted

if TYPE_CHECKING:
    from stablelightning.model.replay import Player, Recorder


#: Where a weight is registered, its name, the tensor, its version and address.
_Weight = tuple[dict[str, Any], str, Tensor | None, int, int]

#: The attributes of a module (or its children), what they were, and the identities of these.
_Attributes = tuple[dict[str, Any], list[Any], list[int]]


@dataclass(slots=True)
class _Call:
    """One completed call of a trusted module within the prefix."""

    end: int
    args: Any
    kwargs: Any
    outputs: list[Any]
    spec: Any
    weights: list[_Weight]
    attributes: list[_Attributes]
    precision: Any

    def is_as_it_was(self) -> bool:
        """Whether nothing that the result depends on was changed by a user's code."""
        return (
            self.precision == _precision()
            and _untouched(self.weights)
            and all(_unchanged(table, ids) for table, _, ids in self.attributes)
        )


def trusted_modules(model: nn.Module) -> list[nn.Module]:
    """Modules of ``model`` that may be skipped as a whole: nothing inside them is live."""
    trusted: dict[nn.Module, bool] = {}

    def visit(module: nn.Module) -> bool:
        if module not in trusted:
            trusted[module] = False  # a cycle is nothing to trust
            inside = [visit(child) for child in module.children()]
            trusted[module] = all(inside) and _is_plain(module)
        return trusted[module]

    visit(model)
    return [module for module, trust in trusted.items() if trust]


def _is_plain(module: nn.Module) -> bool:
    return _is_untouched_class(module) and not module.training


def _is_untouched_class(module: nn.Module) -> bool:
    return is_trusted(module) and "forward" not in vars(module) and _has_no_hooks(module)


def _has_no_hooks(module: nn.Module) -> bool:
    return not module._forward_hooks and not module._forward_pre_hooks


class Shortcuts:
    """The calls of trusted modules that a recorded prefix contains.

    Args:
        model: its trusted modules are watched while a tape is recorded, and skipped on replays.
        alone: whether a pass is a call of the model, and nothing else.
    """

    def __init__(self, model: nn.Module, *, alone: bool) -> None:
        self._modules = trusted_modules(model)
        # Where no line of a user's code runs, nothing can change between passes.
        self._closed = alone and all(_is_untouched_class(m) for m in model.modules())
        self._calls: dict[tuple[int, int], _Call] = {}
        self._inside = False

    @contextmanager
    def recorded(self, recorder: "Recorder") -> Iterator[None]:
        """Note every completed call of a trusted module."""

        def wrap(module: nn.Module) -> Any:
            forward = module.forward

            def noted(*args: Any, **kwargs: Any) -> Any:
                if self._inside or recorder.finished or torch.is_grad_enabled():
                    return forward(*args, **kwargs)
                start = len(recorder.tape.operations)
                try:
                    with _unwatched():
                        given = _described(recorder.tape, (args, kwargs))
                except CannotReplay:
                    return forward(*args, **kwargs)
                self._inside = True
                try:
                    output = forward(*args, **kwargs)
                finally:
                    self._inside = False
                if not recorder.finished:
                    with _unwatched():
                        self._note(module, start, recorder, given, args, output)
                return output

            return noted

        with replaced_forwards({m: wrap(m) for m in self._modules}):
            yield

    @contextmanager
    def taken(self, player: "Player") -> Iterator[None]:
        """Answer calls of trusted modules from the tape."""

        def wrap(module: nn.Module) -> Any:
            forward, key = module.forward, id(module)
            calls = self._calls

            def skipped(*args: Any, **kwargs: Any) -> Any:
                call = calls.get((key, player.position))
                if call is not None and player.diverged is None and not torch.is_grad_enabled():
                    with _unwatched():
                        if (
                            player.agree(call.args, args)
                            and player.agree(call.kwargs, kwargs)
                            and (self._closed or call.is_as_it_was())
                        ):
                            player.position = call.end
                            return _answer(call, args)
                return forward(*args, **kwargs)

            return skipped

        called = {key for key, _ in self._calls}
        with replaced_forwards({m: wrap(m) for m in self._modules if id(m) in called}):
            yield

    def _note(
        self,
        module: nn.Module,
        start: int,
        recorder: "Recorder",
        given: Any,
        args: Any,
        output: Any,
    ) -> None:
        leaves, spec = tree_flatten(output)
        outputs: list[Any] = []
        for leaf in leaves:
            position = next((i for i, a in enumerate(args) if a is leaf), None)
            if position is not None and isinstance(leaf, Tensor):
                outputs.append(_Argument(position))
                continue
            try:
                outputs.append(recorder.tape.describe_leaf(leaf))
            except CannotReplay:
                return
        end = len(recorder.tape.operations)
        self._calls[id(module), start] = _Call(
            end,
            given[0],
            given[1],
            outputs,
            spec,
            _weights(module),
            _attributes(module),
            _precision(),
        )


_PLAIN = (bool, int, float, str, type(None), Tensor)


def _described(tape: Tape, given: Any) -> Any:
    """What a call was given, on tape.

    Raises:
        CannotReplay: it was given something else than tensors, plain values and containers of them.
    """
    if type(given) in (tuple, list):
        return type(given)(_described(tape, item) for item in given)
    if type(given) is dict:
        return {key: _described(tape, item) for key, item in given.items()}
    if not isinstance(given, _PLAIN):
        raise CannotReplay(f"a module is given a {type(given).__name__}")
    return tape.describe_leaf(given)


@dataclass(frozen=True, slots=True)
class _Argument:
    """An output that is one of the arguments, written in place."""

    position: int


def _answer(call: _Call, args: Any) -> Any:
    leaves = []
    for output in call.outputs:
        if isinstance(output, _Argument):
            leaves.append(args[output.position])
        elif isinstance(output, Made | Given):
            assert output.template is not None
            leaves.append(output.template.detach())
        else:
            leaves.append(output)
    return leaves[0] if call.spec.is_leaf() else tree_unflatten(leaves, call.spec)


#: Instead of a version, for tensors that keep none.
_NO_VERSION = -1


def _weights(module: nn.Module) -> list[_Weight]:
    found: list[_Weight] = []
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    found.append((table, name, None, _NO_VERSION, 0))
                else:
                    version = _NO_VERSION if tensor.is_inference() else tensor._version
                    found.append((table, name, tensor, version, tensor.data_ptr()))
    return found


def _precision() -> Any:
    return [
        (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    ]


def _untouched(weights: list[_Weight]) -> bool:
    for table, name, tensor, version, pointer in weights:
        if table.get(name) is not tensor:
            return False
        if tensor is not None and (
            tensor.data_ptr() != pointer or (version != _NO_VERSION and tensor._version != version)
        ):
            return False
    return True


def _attributes(module: nn.Module) -> list[_Attributes]:
    found: list[_Attributes] = []
    for owner in module.modules():
        for table in (vars(owner), owner._modules) if owner._modules else (vars(owner),):
            values = [v for k, v in table.items() if k != "forward"]
            found.append((table, values, list(map(id, values))))
    return found


def _unchanged(table: dict[str, Any], ids: list[int]) -> bool:
    now = list(map(id, table.values()))
    if "forward" in table:  # the one that answers here; what is put in last stands last
        now.pop()
    return now == ids


@contextmanager
def _unwatched() -> Iterator[None]:
    """Look at tensors without the watching modes seeing it."""
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        yield
