"""Watching and preserving the random number generators that a forward pass may move."""

import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _cuda_generators() -> tuple[torch.Generator, ...]:
    return tuple(torch.cuda.default_generators) if torch.cuda.is_initialized() else ()


class GeneratorWatch:
    """Says whether torch's default generators moved since the watch was made.

    Example:
        >>> watch = GeneratorWatch()
        >>> watch.moved()
        False
        >>> _ = torch.rand(1)
        >>> watch.moved()
        True
    """

    def __init__(self) -> None:
        self._cpu = torch.default_generator.get_state()
        self._cuda = [_position(g) for g in _cuda_generators()]

    def moved(self) -> bool:
        """Whether any default generator (CPU, or CUDA where it is in use) has advanced."""
        cuda = [_position(g) for g in _cuda_generators()]
        return cuda != self._cuda or not torch.equal(torch.default_generator.get_state(), self._cpu)


def _position(generator: torch.Generator) -> tuple[int, int]:
    return generator.initial_seed(), generator.get_offset()


class HostGeneratorWatch:
    """The same for Python's ``random`` and, where it is imported, NumPy's global generator."""

    def __init__(self) -> None:
        self._state = self._read()

    def moved(self) -> bool:
        """Whether Python's or NumPy's global generator has advanced."""
        return self._read() != self._state

    @staticmethod
    def _read() -> tuple[Any, ...]:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return (random.getstate(),)
        return random.getstate(), pickle.dumps(numpy.random.get_state(legacy=False))


class GeneratorState:
    """Torch's default generators as they are now, to be restored later."""

    def __init__(self) -> None:
        self._cpu: Tensor = torch.default_generator.get_state()
        self._cuda = [(g, g.get_state()) for g in _cuda_generators()]

    def restore(self) -> None:
        """Put the generators back."""
        torch.default_generator.set_state(self._cpu)
        for generator, state in self._cuda:
            generator.set_state(state)


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Leave every global generator as it was: torch's, Python's and NumPy's."""
    host = random.getstate()
    numpy = sys.modules.get("numpy")
    array = None if numpy is None else numpy.random.get_state()
    try:
        with preserved_generators():
            yield
    finally:
        random.setstate(host)
        if numpy is not None:
            numpy.random.set_state(array)


@contextmanager
def preserved_generators(seed: int | None = None) -> Iterator[None]:
    """Leave torch's default generators as they were; inside, start them from ``seed`` if given."""
    before = GeneratorState()
    try:
        if seed is not None:
            torch.manual_seed(seed)
        yield
    finally:
        before.restore()
