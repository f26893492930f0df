"""Which modules of a model are random when they train, and a context in which only those are live.

torch's own random modules are known by class. Every other module whose class reads
``self.training`` is asked by experiment: its own flag is flipped (its children's are not) and one
watches whether a generator moves during its call. That finds hand-written attention, DropPath and
``F.dropout(..., training=self.training)``, and leaves alone auxiliary heads and whatever else hides
behind the flag.
"""

import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from stablelightning.model.footprint import Footprint
from stablelightning.model.generators import GeneratorWatch, undisturbed_generators
from stablelightning.model.modules import modules_of, set_training

_FUNCTIONAL_DROPOUTS = frozenset(
    {
        nn.functional.dropout,
        nn.functional.dropout1d,
        nn.functional.dropout2d,
        nn.functional.dropout3d,
        nn.functional.alpha_dropout,
        nn.functional.feature_alpha_dropout,
    }
)


@dataclass
class StochasticModules:
    """The random modules of one model.

    Args:
        flagged: modules whose own ``training`` flag switches their randomness on.
        functional: modules that call ``F.dropout(..., training=self.training)`` and whose flag does
            more than that (another output, running statistics): only the dropout calls that they
            make are switched on.
        modules: all modules of the model.
    """

    modules: list[nn.Module] = field(default_factory=list)
    flagged: list[nn.Module] = field(default_factory=list)
    functional: list[nn.Module] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.flagged or self.functional)


def stochastic_modules(
    model: nn.Module, call: Callable[[], Any] | None = None, *, also: tuple[type, ...] = ()
) -> StochasticModules:
    """Find the modules of ``model`` that draw random numbers when they train.

    Args:
        model: any module; its flags, buffers and the generators are left as they were.
        call: runs the model once on representative inputs. Without it, only torch's own random
            modules are found.
        also: further module classes to count as random, such as ``nn.RReLU``, which by itself is
            not sampled: its slope is a regularizer, not an approximate posterior.

    Returns:
        The modules, in the order of ``model.modules()``. The answer of an experiment is remembered
        until a rate or another plain attribute of the modules that were asked changes.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142 (dropout that stays on at inference).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
        >>> stochastic_modules(net).flagged
        [Dropout(p=0.5, inplace=False)]
    """
    found = StochasticModules(modules=modules_of(model))
    asked: list[nn.Module] = []
    for module in found.modules:
        rate = _rate_name(type(module))
        if rate is None:
            if also and isinstance(module, also):
                found.flagged.append(module)
        elif rate == _ASK:
            asked.append(module)
        elif getattr(module, rate) > 0:
            found.flagged.append(module)
    if asked and call is not None:
        answers = _ask(model, asked, call)
        found.flagged += [m for m in asked if answers.get(m) == "flag"]
        found.functional += [m for m in asked if answers.get(m) == "functional"]
    return found


@contextmanager
def sampling_mode(found: StochasticModules) -> Iterator[None]:
    """Put a model in eval with only its random modules live; flags are restored on the way out.

    The fused path of ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention``, which skips
    their dropout, is off inside; compiled modules run eagerly (recompiling for the flags would cost
    more); and autocast does not cache casts, so that every pass runs the same operations.
    """
    flags = [(module, module.training) for module in found.modules]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    autocast_cache = torch.is_autocast_cache_enabled()
    functional = _FunctionalDropoutOn(found.functional) if found.functional else None
    try:
        for module, training in flags:
            if training:
                set_training(module, False)
        for module in found.flagged:
            set_training(module, True)
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_autocast_cache_enabled(False)
        with _eagerly(), functional or nullcontext():
            yield
    finally:
        if functional is not None:
            functional.detach()
        torch.set_autocast_cache_enabled(autocast_cache)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in flags:
            set_training(module, training)


def _eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run eagerly; where no compiler backend was ever named, nothing is done."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    backends = {} if dynamo is None else getattr(dynamo, "cached_backends", {0: "unknown"})
    if all(backend is None for backend in backends.values()):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


class _FunctionalDropoutOn(TorchFunctionMode):
    """Turns on the functional dropouts called directly by the given modules."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        chosen = set(map(id, modules))
        self.stack: list[bool] = [False]
        self.hooks = []

        def enter(module: nn.Module, *_: Any) -> None:
            self.stack.append(id(module) in chosen)

        def leave(*_: Any) -> None:
            self.stack.pop()

        for module in {m for owner in modules for m in owner.modules()}:
            self.hooks.append(module.register_forward_pre_hook(enter))
            self.hooks.append(module.register_forward_hook(leave, always_call=True))

    def detach(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FUNCTIONAL_DROPOUTS and self.stack[-1]:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.arguments["training"] = True
            return func(*bound.args, **bound.kwargs)
        return func(*args, **kwargs)


#: Stands for: a class of somebody else's whose code reads ``self.training``.
_ASK = "?"

_RATE_NAMES: weakref.WeakKeyDictionary[type, str | None] = weakref.WeakKeyDictionary()


def _rate_name(kind: type) -> str | None:
    """The attribute with the rate of a random class of torch, or ``_ASK``, or ``None``: steady."""
    try:
        return _RATE_NAMES[kind]
    except KeyError:
        _RATE_NAMES[kind] = name = _classify(kind)
        return name


def _classify(kind: type) -> str | None:
    if issubclass(kind, _DropoutNd):
        return "p"
    if issubclass(kind, nn.RNNBase | nn.MultiheadAttention):
        return "dropout"
    if issubclass(kind, _NormBase) or kind.__module__.startswith("torch.nn.modules."):
        return None
    return _ASK if _reads_training_flag(kind) else None


def _reads_training_flag(kind: type) -> bool:
    """Whether code of the class (not of torch's base classes) mentions ``training``."""
    return any(
        _mentions_training(value)
        for base in kind.__mro__
        if not base.__module__.startswith(("torch.nn.modules.", "lightning.", "builtins"))
        for name, value in vars(base).items()
        if name != "train"
    )


def _mentions_training(value: object) -> bool:
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, property):
        return any(_mentions_training(f) for f in (value.fget,) if f is not None)
    code = getattr(value, "__code__", None)
    pending = [code] if isinstance(code, types.CodeType) else []
    while pending:
        current = pending.pop()
        if "training" in current.co_names:
            return True
        pending += [c for c in current.co_consts if isinstance(c, types.CodeType)]
    return False


# ---- the experiment ---------------------------------------------------------------------------

_Answers = weakref.WeakKeyDictionary[nn.Module, str]
_REMEMBERED: weakref.WeakKeyDictionary[nn.Module, tuple[Any, _Answers]] = (
    weakref.WeakKeyDictionary()
)


def _ask(model: nn.Module, asked: list[nn.Module], call: Callable[[], Any]) -> _Answers:
    signature = tuple((id(m), _plain_attributes(m)) for m in asked)
    remembered = _REMEMBERED.get(model)
    if remembered is not None and remembered[0] == signature:
        return remembered[1]
    answers = _experiment(model, asked, call)
    _REMEMBERED[model] = (signature, answers)
    return answers


def _plain_attributes(module: nn.Module) -> tuple[Any, ...]:
    """What could switch a module's randomness: numbers on itself and its direct children."""
    return tuple(
        value
        for owner in (module, *module.children())
        for name, value in vars(owner).items()
        if isinstance(value, float | int) and name != "training"
    )


def _experiment(model: nn.Module, asked: list[nn.Module], call: Callable[[], Any]) -> _Answers:
    answers: _Answers = weakref.WeakKeyDictionary()
    busy = False

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal busy
        if busy or answers.get(module, "steady") != "steady":
            return
        busy = True
        try:
            args, kwargs = _KEPT.pop(module, (args, kwargs))
            answers[module] = _ask_one(
                module, lambda: module.forward(*_copied(args), **_copied(kwargs)), output
            )
        finally:
            busy = False

    handles = []
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module in asked:
            handles.append(module.register_forward_pre_hook(_keep_inputs, with_kwargs=True))
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        for module, _ in flags:
            module.training = False
        with (
            torch.no_grad(),
            Footprint(model),
            undisturbed_generators(),
            _eagerly(),
        ):
            output = call()
            if model in asked and model not in answers:  # called by another door than forward
                busy = True
                answers[model] = _ask_one(model, call, output)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in flags:
            module.training = training
        _KEPT.clear()
    return answers


_KEPT: dict[nn.Module, tuple[Any, Any]] = {}


def _keep_inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
    # Forwards may write into their inputs; the second call needs them as they were.
    _KEPT[module] = _copied((args, kwargs))


def _copied(tree: Any) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tree)


def _ask_one(module: nn.Module, forward: Callable[[], Any], output: Any) -> str:
    buffers = {name: b.clone() for name, b in module.named_buffers()}
    watch = GeneratorWatch()
    module.training = True
    try:
        flipped = forward()
    except Exception:  # whatever the training branch needs and does not get here
        flipped = None
    finally:
        module.training = False
    moved = watch.moved()
    touched = [n for n, b in module.named_buffers() if n in buffers and _differ(b, buffers[n])]
    for name in touched:
        module.get_buffer(name).copy_(buffers[name])
    harmless = not touched and _structure(flipped) == _structure(output)
    if harmless:
        return "flag" if moved else "steady"
    watch = GeneratorWatch()
    functional = _FunctionalDropoutOn([module])
    functional.stack[-1] = True
    try:
        with functional:
            forward()
    finally:
        functional.detach()
    return "functional" if watch.moved() else "steady"


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return not torch.equal(a, b)


def _structure(tree: Any) -> Any:
    """Shapes do not count: dropping patches or tokens changes them, and is random all the same."""
    leaves, spec = tree_flatten(tree)
    return spec, [type(leaf) for leaf in leaves]
