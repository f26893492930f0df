"""Which masks the samples get: of their own, the same for every row, or balanced.

A mode sees every random operation of a pass and answers for those that draw masks. What is drawn
depends on the seed, on the number of the draw in the pass (a module that is called twice draws
twice) and on the number of the sample, and on nothing else: not on the engine, nor on how many
samples share a pass.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from stablelightning.errors import ModelError, RecipeError
from stablelightning.functional.masks import (
    draw_counts,
    fair_mask,
    next_balanced_,
    uniform_integers,
)
from stablelightning.model.batched import CannotBatch, CheapDropout, multi_head_in_the_open
from stablelightning.model.draws import Draw, read_draw
from stablelightning.model.generators import GeneratorWatch
from stablelightning.model.operations import may_draw

Masks = Literal["independent", "consistent", "balanced", "balanced_consistent"]


def check_masks(masks: Masks) -> None:
    """Refuse an unknown kind of masks.

    Raises:
        RecipeError: it is unknown.
    """
    if masks not in get_args(Masks):
        raise RecipeError(f"masks must be one of {', '.join(get_args(Masks))}, got {masks!r}.")


def is_consistent(masks: Masks) -> bool:
    """Whether sample t drops the same units for every row.

    Example:
        >>> is_consistent("balanced_consistent"), is_consistent("balanced")
        (True, False)
    """
    return masks in ("consistent", "balanced_consistent")


def is_balanced(masks: Masks) -> bool:
    """Whether each unit is dropped equally often over the samples.

    Example:
        >>> is_balanced("balanced_consistent"), is_balanced("consistent")
        (True, False)
    """
    return masks in ("balanced", "balanced_consistent")


@dataclass(frozen=True)
class RowAxis:
    """Where the rows of a batch are in what one draw draws.

    Args:
        dim: the dimension.
        each: elements of it that belong to one row, >= 1 (the heads of an attention).
        rows_first: whether the elements of a row lie side by side.
    """

    dim: int
    each: int
    rows_first: bool = True


@dataclass(frozen=True)
class Pass:
    """How the samples lie in one pass.

    Args:
        stacked: samples on a leading axis of their own (``vmap``); 0 is no such axis.
        copies: samples as copies of the rows (``repeat``).
    """

    stacked: int = 0
    copies: int = 1

    @property
    def samples(self) -> int:
        """Samples of the pass."""
        return self.stacked or self.copies


#: One sample by itself.
ONE = Pass()


class MaskStream:
    """The masks of all samples of one call.

    Args:
        samples: how many samples there will be at most.
        seed: what the masks are drawn from.
        balanced: whether the draws of each unit are stratified over the samples.
        consistent: whether all rows share a mask.
        axes: where the rows are, draw by draw; ``None`` for a draw that has none. Needed for
            ``consistent``, and for copies of rows.

    Attributes:
        answered: whether any draw was answered for.
        strange: names of operations whose draws were left to them.
    """

    def __init__(
        self,
        samples: int,
        seed: int,
        *,
        balanced: bool,
        consistent: bool,
        axes: list[RowAxis | None] | None = None,
    ) -> None:
        self.balanced = balanced
        self.consistent = consistent
        self.axes = axes
        self.answered = False
        self.strange: dict[str, None] = {}
        self._samples = samples
        self._seed = seed
        self._first = 0
        self._sites: dict[int, _Site] = {}

    def restart(self) -> None:
        """Begin again with the first sample."""
        self._first = 0
        self._sites = {}

    def check(self) -> None:
        """After a pass: something must have been balanced.

        Raises:
            ModelError: nothing was.
        """
        if self.strange and not self.answered:
            raise ModelError(
                f"balanced masks need draws of zeros and ones at one rate, and this forward draws "
                f"by {', '.join(self.strange)}; use masks='independent'."
            )

    @contextmanager
    def watching(self, passed: Pass) -> Iterator[None]:
        """One pass: its draws are answered for inside."""
        with OpenAttention(), _Answers(self, passed):
            yield
        self._first += passed.samples

    def answer(self, number: int, draw: Draw, passed: Pass) -> Any:
        """What draw ``number`` of a pass returns."""
        axis = self._axis(number, draw)
        shape = list(draw.shape[1:] if passed.stacked else draw.shape)
        rows = 0
        if axis is not None:
            rows = shape[axis.dim] // (axis.each * passed.copies)
            shape[axis.dim] = axis.each if self.consistent else axis.each * rows
        if passed.copies > 1 and (axis is None or not axis.rows_first):
            raise CannotBatch("a draw has no rows that come first")
        self.answered = True
        site = self._site(number, draw, shape)
        raw = site.draw(self._first, passed.samples)  # in the open: it ends a replay's prefix
        with _disable_current_modes():  # the rest is nobody's business, and cheaper so
            drawn = site.take(raw, passed.samples).to(draw.device)
            if axis is not None and self.consistent:
                drawn = _for_all_rows(drawn, axis, rows)
            if axis is not None and passed.copies > 1:
                drawn = drawn.movedim(0, axis.dim).flatten(axis.dim, axis.dim + 1)
            elif not passed.stacked:
                drawn = drawn[0]
        if drawn.shape != draw.shape:
            raise _other_shape(number)
        return draw.finish(drawn)

    def _axis(self, number: int, draw: Draw) -> RowAxis | None:
        if self.axes is None:
            return None
        if number >= len(self.axes):
            raise _other_shape(number)
        return self.axes[number]

    def _site(self, number: int, draw: Draw, shape: list[int]) -> "_Site":
        site = self._sites.get(number)
        if site is None:
            # Masks for all rows are small: from the CPU they are the same on every device.
            device = torch.device("cpu") if self.consistent else draw.device
            seed = _seed_of(self._seed, number)
            samples = self._samples if self.balanced and draw.keep is not None else 0
            # Without its finish, which holds tensors of the first pass.
            law = replace(draw, shape=torch.Size(shape), finish=_nothing)
            site = _Site(law, torch.Generator(device).manual_seed(seed), samples)
            self._sites[number] = site
        elif list(site.law.shape) != shape or site.law.keep != draw.keep:
            raise _other_shape(number)
        return site


class _Site:
    """One draw of the forward, from sample to sample.

    Args:
        law: what one sample draws.
        generator: of its own, fresh from its seed.
        samples: number of samples to be balanced; 0 leaves them independent.
    """

    def __init__(self, law: Draw, generator: torch.Generator, samples: int) -> None:
        self.law = law
        self._generator = generator
        self._samples = samples
        self._drawn = 0
        self._remaining: Tensor | None = None

    def draw(self, first: int, number: int) -> Tensor:
        """Random numbers for the samples before ``first + number`` that have none yet.

        The first operation draws, whatever the sample: what comes before the first random
        operation of a pass must be the same in every pass.
        """
        new, self._drawn = first + number - self._drawn, first + number
        if self.law.fill is None:
            return uniform_integers(self.law.shape, generator=self._generator, number=new)
        empty = partial(torch.empty, self.law.shape, dtype=self.law.dtype)
        device = self._generator.device
        return torch.stack(
            [self.law.fill(empty(device=device), self._generator) for _ in range(new)]
        )

    def take(self, raw: Tensor, number: int) -> Tensor:
        """What the last ``number`` samples draw, ``(number, *shape)``.

        There are others before them where the forward did not come by here in every pass.
        """
        if self.law.keep is None:
            return raw[-number:]
        if self._samples == 0:
            return fair_mask(raw[-number:], self.law.keep)
        if self._remaining is None:
            # From a stream beside: the masks are then the same however many are taken at once.
            beside = torch.Generator(self._generator.device)
            beside.manual_seed(_seed_of(self._generator.initial_seed(), 0))
            counts = uniform_integers(self.law.shape, generator=beside)
            self._remaining = draw_counts(counts, keep=self.law.keep, samples=self._samples)
        masks = torch.empty_like(raw, dtype=torch.bool)
        for place, uniform in enumerate(raw):
            left = self._samples - self._drawn + len(raw) - place
            # A last pass may have room for more samples than are wanted.
            masks[place] = next_balanced_(self._remaining, uniform, left=left) if left > 0 else True
        return masks[-number:]


def _for_all_rows(drawn: Tensor, axis: RowAxis, rows: int) -> Tensor:
    """Spread what was drawn for one row, ``(samples, ..., each, ...)``, over all rows."""
    dim = 1 + axis.dim
    at = dim if axis.rows_first else dim + 1
    shape = list(drawn.unsqueeze(at).shape)
    shape[at] = rows
    return drawn.unsqueeze(at).expand(shape).flatten(dim, dim + 1)


def _seed_of(seed: int, number: int) -> int:
    """Neighbouring seeds would give generators that start alike."""
    digest = hashlib.blake2b(repr((seed, number)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _nothing(drawn: Tensor) -> None:
    return None


def _other_shape(number: int) -> ModelError:
    return ModelError(
        f"masks must have one shape and rate in every pass, and draw {number + 1} of the forward "
        "changed between two of them; use masks='independent'."
    )


class _Answers(TorchDispatchMode):
    """Hands the draws of one pass to the stream."""

    def __init__(self, stream: MaskStream, passed: Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stream = stream
        self._passed = passed
        self._number = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not may_draw(func):
            return func(*args, **kwargs)
        draw = read_draw(func, args, kwargs)
        if draw is None:
            return self._left_alone(func, args, kwargs)
        self._number += 1
        if draw.keep is None and not self._stream.consistent:
            return self._left_alone(func, args, kwargs)
        return self._stream.answer(self._number - 1, draw, self._passed)

    def _left_alone(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        watch = GeneratorWatch()
        output = func(*args, **kwargs)
        if watch.moved() or kwargs.get("generator") is not None:
            name = func._schema.name.removeprefix("aten::")
            if self._stream.consistent:
                raise ModelError(
                    f"consistent masks need draws that can be made for all rows at once, and this "
                    f"forward draws by {name}; use masks='independent'."
                )
            self._stream.strange[name] = None
        return output


class OpenAttention(TorchFunctionMode):
    """Attention that drops its weights does so in the open, in every engine alike."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _PLAIN.attention(*args, **kwargs)
        if func is functional.multi_head_attention_forward and args[_DROPOUT_P] > 0:
            return multi_head_in_the_open(args, kwargs)
        return func(*args, **kwargs)


#: Position of ``dropout_p`` among the arguments of ``F.multi_head_attention_forward``.
_DROPOUT_P = 10

_PLAIN = CheapDropout(cheap=False, everywhere=True)
