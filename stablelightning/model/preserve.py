"""Leaving a model exactly as it was, whatever a training step did to it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.model.generators import undisturbed_generators


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore everything that a training step may move, to the bit, also when it fails.

    Parameters and buffers (contents, identity, ``requires_grad``), ``.grad``, training flags, plain
    attributes of every module (counters, lists, tensors, the state of metrics), and every global
    random number generator. What a model keeps outside of itself cannot be seen from here.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> with preserved(net):
        ...     _ = net(torch.randn(8, 2))
        >>> net[1].num_batches_tracked
        tensor(0)
    """
    modules = list(model.modules())
    attributes = [(vars(m), {n: _Kept(v) for n, v in vars(m).items()}) for m in modules]
    tensors = [_KeptTensor(t) for t in _tensors_of(model)]
    try:
        with undisturbed_generators():
            yield
    finally:
        for present, kept in attributes:
            for name in [n for n in present if n not in kept]:
                del present[name]
            for name, value in kept.items():
                present[name] = value.restored()
        for tensor in tensors:
            tensor.restore()


class _Kept:
    """A plain attribute: the object itself, and the contents of a container or a tensor."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.content: Any = None
        if isinstance(value, list | dict | set):
            self.content = copy.copy(value)
        elif isinstance(value, Tensor) and not _is_unusual(value):
            self.content = value.detach().clone()

    def restored(self) -> Any:
        if isinstance(self.value, list):
            self.value[:] = self.content
        elif isinstance(self.value, dict):
            if not _same_entries(self.value, self.content):
                self.value.clear()
                self.value.update(self.content)
        elif isinstance(self.value, set):
            self.value.clear()
            self.value.update(self.content)
        elif self.content is not None:
            _write_back(self.value, self.content)
        return self.value


class _KeptTensor:
    """A parameter or a buffer, with its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.content = tensor.detach().clone()
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_content = None if self.grad is None else self.grad.detach().clone()

    def restore(self) -> None:
        _write_back(self.tensor, self.content)
        if not self.tensor.is_leaf:
            return
        if self.tensor.requires_grad is not self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad
        if self.grad is not None and self.grad_content is not None:
            _write_back(self.grad, self.grad_content)


def _tensors_of(model: nn.Module) -> list[Tensor]:
    found = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return [t for t in found.values() if not _is_unusual(t)]


def _is_unusual(tensor: Tensor) -> bool:
    """Whether a tensor has no contents that could be copied."""
    return is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided


def _write_back(tensor: Tensor, content: Tensor) -> None:
    # Past autograd and its version counters: a graph of the user's may still hold this tensor.
    if tensor.shape != content.shape or not torch.equal(tensor.detach(), content):
        tensor.data.set_(content) if tensor.shape != content.shape else tensor.data.copy_(content)


def _same_entries(present: dict[Any, Any], kept: dict[Any, Any]) -> bool:
    return present.keys() == kept.keys() and all(present[k] is kept[k] for k in kept)
