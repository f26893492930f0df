"""Checks on how a class is put together with a mixin, made when the class is made.

Wrong bases fail late and obscurely: Lightning reports a missing ``training_step``, jsonargparse a
key that it does not know. Here each mistake is one sentence at the line of the class.
"""

import dis
import inspect
from collections.abc import Callable, Collection
from typing import Any

from stablelightning.errors import ModelError

#: The stand-alone package of the same code. Its classes are other classes.
_OTHER_PACKAGE = "pytorch_lightning"


def check_bases(cls: type, *, mixin: type, settings: Collection[str]) -> None:
    """Refuse a class in which ``mixin`` would be shadowed, skipped or cut off from its settings.

    Args:
        cls: the class being made. Without a LightningModule among its bases it is a mixin too, and
            is checked when it meets one.
        mixin: a base of ``cls`` with a cooperative ``__init__``.
        settings: names of the keyword arguments that ``mixin.__init__`` takes.

    Raises:
        ModelError: the mixin comes after the LightningModule, the LightningModule is that of
            ``pytorch_lightning``, an ``__init__`` calls a later base by name, or keeps the settings
            from the mixin.

    Example:
        >>> class Mixin: ...
        >>> class LightningModule: ...
        >>> check_bases(type("Net", (LightningModule, Mixin), {}), mixin=Mixin, settings=["task"])
        Traceback (most recent call last):
        ...
        stablelightning.errors.ModelError: Mixin must come before LightningModule among the bases...
    """
    order = cls.__mro__
    module = _lightning_module(cls)
    if module is None:
        return
    if module.__module__.partition(".")[0] == _OTHER_PACKAGE:
        raise ModelError(
            f"{cls.__name__} must be a LightningModule of lightning, got one of {_OTHER_PACKAGE}; "
            f"import lightning as L instead of {_OTHER_PACKAGE} (same code, other classes)."
        )
    place = order.index(mixin)
    if order.index(module) < place:
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        raise ModelError(
            f"{mixin.__name__} must come before LightningModule among the bases of "
            f"{cls.__name__}, got ({bases}); write class {cls.__name__}({mixin.__name__}, ...)."
        )
    open_to_settings = True
    for base in reversed(order[:place]):
        constructor = inspect.unwrap(base.__dict__.get("__init__", _nothing))
        if not inspect.isfunction(constructor) or constructor is _nothing:
            continue
        _check_no_base_by_name(base, constructor, later=order[place + 1 : -1], mixin=mixin)
        # Below a class that fixes the settings itself there is nothing to hand on.
        if open_to_settings:
            _check_settings_reach_mixin(base, constructor, settings)
        parameters = inspect.signature(constructor).parameters.values()
        open_to_settings = any(p.kind is p.VAR_KEYWORD or p.name in settings for p in parameters)


def give_way(cls: type, *, mixin: type, names: Collection[str]) -> None:
    """Let what a user's base class defines win over the mixin's defaults of the same name.

    In ``class Net(StableMixin, TheirModule)`` the mixin is first, as it must be, and would hide the
    steps that ``TheirModule`` already has.

    Args:
        cls: the class being made; changed in place.
        mixin: the base whose defaults give way.
        names: which of the mixin's attributes are defaults.

    Example:
        >>> class Mixin:
        ...     def loss(self): return "default"
        >>> class LightningModule: ...
        >>> class Theirs(LightningModule):
        ...     def loss(self): return "theirs"
        >>> class Net(Mixin, Theirs): ...
        >>> give_way(Net, mixin=Mixin, names=["loss"])
        >>> Net().loss()
        'theirs'
    """
    module = _lightning_module(cls)
    if module is None:
        return
    order = cls.__mro__
    place = order.index(mixin)
    for name in names:
        if any(name in base.__dict__ for base in order[:place]):
            continue
        for base in order[place + 1 : order.index(module)]:
            if name in base.__dict__:
                setattr(cls, name, base.__dict__[name])
                break


def _lightning_module(cls: type) -> type | None:
    return next((base for base in cls.__mro__ if base.__name__ == "LightningModule"), None)


def _nothing() -> None: ...


def _check_no_base_by_name(
    cls: type, constructor: Callable[..., Any], *, later: tuple[type, ...], mixin: type
) -> None:
    """``LightningModule.__init__(self)`` in a constructor jumps over the mixin's own."""
    names = {base.__name__ for base in later}
    scope = constructor.__globals__
    previous = ""
    for instruction in dis.get_instructions(constructor):
        named = previous in names or scope.get(previous) in later
        if named and instruction.argval == "__init__":
            raise ModelError(
                f"{cls.__name__}.__init__ must call super().__init__(**kwargs), got "
                f"{previous}.__init__(...), which skips {mixin.__name__}; replace that call."
            )
        previous = instruction.argval if isinstance(instruction.argval, str) else ""


def _check_settings_reach_mixin(
    cls: type, constructor: Callable[..., Any], settings: Collection[str]
) -> None:
    """A constructor takes ``**kwargs`` and hands them on, or deals with the settings by name."""
    parameters = inspect.signature(constructor).parameters.values()
    if any(parameter.name in settings for parameter in parameters):
        return
    # Keyword names of calls are tuples among the constants: super().__init__(task="regression").
    passed = {name for c in constructor.__code__.co_consts if isinstance(c, tuple) for name in c}
    if passed & set(settings):
        return
    rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    listed = ", ".join(settings)
    if rest is None:
        raise ModelError(
            f"{cls.__name__}.__init__ must take **kwargs and hand them on, so that {listed} can be "
            f"set, got {inspect.signature(constructor)}; "
            "add **kwargs and call super().__init__(**kwargs)."
        )
    if not any(i.argval == rest for i in dis.get_instructions(constructor)):
        raise ModelError(
            f"{cls.__name__}.__init__ must hand **{rest} on, so that {listed} can be set, and it "
            f"drops them; call super().__init__(**{rest})."
        )
