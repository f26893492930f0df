"""Random operations, read so that what they draw can be drawn in another way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten

_Finish = Callable[[Tensor], Any]
_Fill = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Draw:
    """One random operation about to run.

    Args:
        shape: of what it draws.
        dtype: of what it draws.
        device: where.
        finish: takes what was drawn (for a mask bool, True is kept) and gives what the operation
            would have returned.
        keep: probability of True, where it draws a mask of one rate; else ``None``.
        fill: fills an empty tensor of any shape with the same law, where it draws no mask.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    finish: _Finish
    keep: float | None = None
    fill: _Fill | None = None


def read_draw(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draw | None:
    """What an operation is about to draw; ``None`` if it is not known how to draw it otherwise.

    Args:
        op: an aten operation.
        args: as it is called.
        kwargs: likewise.

    Example:
        >>> noise = torch.empty(4)
        >>> read_draw(torch.ops.aten.bernoulli_.float, (noise, 0.75), {}).keep
        0.75
        >>> read_draw(torch.ops.aten.multinomial.default, (noise, 1), {}) is None
        True
    """
    reader = _READERS.get(op.overloadpacket)
    return None if reader is None else reader(op, args, kwargs)


def _bernoulli_(op: OpOverload, args: Any, kwargs: Any) -> Draw | None:
    into = args[0]
    keep = _one_rate(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
    return None if keep is None else _mask(into, keep, into.copy_)


def _bernoulli(op: OpOverload, args: Any, kwargs: Any) -> Draw | None:
    like = args[0]
    keep = _one_rate(args[1] if len(args) > 1 else kwargs.get("p", like))
    if keep is None or "out" in kwargs:
        return None
    return _mask(like, keep, lambda mask: mask.to(like.dtype))


def _one_rate(rate: Any) -> float | None:
    """The rate of all elements, or ``None`` if they differ."""
    if not isinstance(rate, Tensor):
        return float(rate)
    if rate.numel() == 0:
        return None
    low, high = torch.aminmax(rate.detach())
    return float(low) if bool(low == high) else None


def _dropout(op: OpOverload, args: Any, kwargs: Any) -> Draw | None:
    input, rate, train = args
    if train is False or not 0 < rate < 1:
        return None

    def finish(mask: Tensor) -> tuple[Tensor, Tensor]:
        return aten.native_dropout_backward(input, mask, 1 / (1 - rate)), mask

    return _mask(input, 1 - rate, finish)


def _mask(like: Tensor, keep: float, finish: _Finish) -> Draw:
    return Draw(like.shape, torch.bool, like.device, finish, keep=keep)


def _in_place(op: OpOverload, args: Any, kwargs: Any) -> Draw:
    into, *settings = args
    named = {name: value for name, value in kwargs.items() if name != "generator"}

    def fill(empty: Tensor, generator: torch.Generator) -> Tensor:
        return op(empty, *settings, **named, generator=generator)  # type: ignore[no-any-return]

    return Draw(into.shape, into.dtype, into.device, into.copy_, fill=fill)


def _made(fill: str, settings: Callable[[Any], tuple[Any, ...]]) -> Callable[..., Draw | None]:
    """Reads a factory whose last positional argument is the size."""

    def read(op: OpOverload, args: Any, kwargs: Any) -> Draw | None:
        if "out" in kwargs:
            return None
        dtype = kwargs.get("dtype") or _usual(fill)
        device = torch.device(kwargs.get("device") or "cpu")
        shape = torch.Size(args[-1])
        return Draw(shape, dtype, device, _as_drawn, fill=_filled_by(fill, settings(args[:-1])))

    return read


def _like(fill: str, settings: Callable[[Any], tuple[Any, ...]]) -> Callable[..., Draw | None]:
    """Reads a factory whose first argument is a tensor to be like."""

    def read(op: OpOverload, args: Any, kwargs: Any) -> Draw | None:
        like = args[0]
        if not all(isinstance(bound, int | float) for bound in args[1:]):
            return None
        dtype, device = kwargs.get("dtype") or like.dtype, kwargs.get("device") or like.device
        filled = _filled_by(fill, settings(args[1:]))
        return Draw(like.shape, dtype, torch.device(device), _as_drawn, fill=filled)

    return read


def _filled_by(name: str, settings: tuple[Any, ...]) -> _Fill:
    def fill(empty: Tensor, generator: torch.Generator) -> Tensor:
        return getattr(empty, name)(*settings, generator=generator)  # type: ignore[no-any-return]

    return fill


def _usual(fill: str) -> torch.dtype:
    return torch.int64 if fill == "random_" else torch.get_default_dtype()


def _as_drawn(drawn: Tensor) -> Tensor:
    return drawn


def _no_settings(args: Any) -> tuple[Any, ...]:
    return ()


def _bounds(args: Any) -> tuple[Any, ...]:
    return (0, *args) if len(args) == 1 else tuple(args)


_READERS: dict[Any, Callable[..., Draw | None]] = {
    aten.bernoulli_: _bernoulli_,
    aten.bernoulli: _bernoulli,
    aten.native_dropout: _dropout,
    **dict.fromkeys(
        (aten.uniform_, aten.normal_, aten.exponential_, aten.random_, aten.geometric_,
         aten.log_normal_, aten.cauchy_),
        _in_place,
    ),
    aten.rand: _made("uniform_", _no_settings),
    aten.randn: _made("normal_", _no_settings),
    aten.randint: _made("random_", _bounds),
    aten.rand_like: _like("uniform_", _no_settings),
    aten.randn_like: _like("normal_", _no_settings),
    aten.randint_like: _like("random_", _bounds),
}  # fmt: skip
