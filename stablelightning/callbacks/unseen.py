"""Steps that no callback sees: neither through the Trainer, nor through hooks put on modules."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stablelightning.callbacks.steps import unreplaced_methods
from stablelightning.model.modules import modules_of

#: How far into a callback's attributes its handles are looked for.
_DEPTH = 4
#: Where a module and an optimizer keep hooks that run in a step.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
)
#: What is not searched: it belongs to the run, or is large, or belongs to nobody.
_NOT_SEARCHED = (nn.Module, Tensor, torch.optim.Optimizer, L.Trainer, type, str, bytes)
_CONTAINERS = (dict, list, tuple, set)


@contextmanager
def unseen_by_callbacks(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[None]:
    """Let the Trainer have no callbacks for a while, and the module none of what they put on it.

    Methods of the module that callbacks of this package replaced are the module's own meanwhile.
    Hooks on modules, parameters and optimizers are taken off where a callback holds their handle,
    or their function belongs to a callback. A model's own hooks stay: they are part of it.

    Args:
        trainer: in a run.
        pl_module: its module.

    Example:
        >>> class Count(L.Callback):
        ...     calls = 0
        ...     def on_fit_start(self, trainer, pl_module):
        ...         pl_module.register_forward_hook(self.count)
        ...     def count(self, *_):
        ...         self.calls += 1
        >>> module, count = L.LightningModule(), Count()
        >>> trainer = L.Trainer(accelerator="cpu", barebones=True, callbacks=[count])
        >>> count.on_fit_start(trainer, module)
        >>> with unseen_by_callbacks(trainer, module):
        ...     len(trainer.callbacks), len(module._forward_hooks)
        (0, 0)
        >>> len(module._forward_hooks)
        1
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    handles, owned = _held_by(callbacks)
    with ExitStack() as stack:
        stack.enter_context(unreplaced_methods(pl_module))
        for hooks, numbers in _to_hide(trainer, pl_module, handles, owned):
            stack.callback(_refill, hooks, dict(hooks))
            for number in numbers:
                hooks.pop(number, None)
        stack.callback(setattr, trainer, "callbacks", callbacks)
        trainer.callbacks = []  # type: ignore[attr-defined]
        yield


def _refill(hooks: Any, content: dict[int, Any]) -> None:
    hooks.clear()
    hooks.update(content)


def _held_by(callbacks: list[L.Callback]) -> tuple[list[RemovableHandle], set[int]]:
    """The handles that callbacks hold, and the identities of all objects that are theirs."""
    handles: list[RemovableHandle] = []
    seen: set[int] = set()
    layer: list[Any] = list(callbacks)
    for _ in range(_DEPTH):
        following: list[Any] = []
        for thing in layer:
            if isinstance(thing, RemovableHandle):
                handles.append(thing)
            elif isinstance(thing, _CONTAINERS):
                following += thing.values() if isinstance(thing, dict) else thing
            elif hasattr(thing, "__dict__") and not isinstance(thing, _NOT_SEARCHED):
                if id(thing) not in seen:
                    following += vars(thing).values()
                seen.add(id(thing))
        layer = following
    return handles, seen


def _to_hide(
    trainer: L.Trainer, module: nn.Module, handles: list[RemovableHandle], owned: set[int]
) -> Iterator[tuple[Any, list[int]]]:
    """Registries of hooks, each once, and the numbers of those in it that are callbacks'."""
    numbers = {handle.id for handle in handles}
    registries = [handle.hooks_dict_ref() for handle in handles]
    for owner in (*modules_of(module), *trainer.optimizers):
        registries += [vars(owner).get(name) for name in _HOOKS]
    once = {id(hooks): hooks for hooks in registries if hooks}
    for hooks in once.values():
        theirs = [n for n, hook in hooks.items() if n in numbers or _belongs(hook, owned)]
        if theirs:
            yield hooks, theirs


def _belongs(hook: Callable[..., Any], owned: set[int]) -> bool:
    """Whether a function is one of these objects', or was made with one of them."""
    if isinstance(hook, partial):
        parts = (hook.func, *hook.args, *hook.keywords.values())
        return any(id(p) in owned or (callable(p) and _belongs(p, owned)) for p in parts)
    cells = getattr(hook, "__closure__", None) or ()
    around = [getattr(hook, "__self__", None), *(_content(cell) for cell in cells)]
    return id(hook) in owned or any(id(part) in owned for part in around if part is not None)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it yet
        return None
