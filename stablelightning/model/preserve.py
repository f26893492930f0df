"""Leaving a model exactly as it was, whatever a training step did to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.modules import content_of, modules_of, parameters_of
from stablelightning.model.trust import is_trusted


@contextmanager
def preserved(model: nn.Module, *, moved: bool = False) -> Iterator[None]:
    """Restore everything that a training step may move, to the bit, also when it fails.

    Parameters and buffers (contents, identity, ``requires_grad``), ``.grad``, training flags, plain
    attributes of every module (counters, lists, tensors, the state of metrics), and every global
    random number generator. What a model keeps outside of itself cannot be seen from here.

    Args:
        model: any module.
        moved: whether the parameters will be moved from outside, as by an optimizer; without it the
            weights of modules of torch, torchvision and timm, whose forwards write none, are not
            copied where no other code runs.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> with preserved(net):
        ...     _ = net(torch.randn(8, 2))
        >>> net[1].num_batches_tracked
        tensor(0)
    """
    modules = modules_of(model)
    kept = [_KeptModule(module) for module in modules]
    everything = moved or not all(map(_writes_no_weights, modules))
    tensors = [_KeptTensor(t, copied=everything) for t in _parameters_of(model)]
    tensors += [_KeptTensor(t, copied=True) for t in _buffers_of(model)]
    try:
        with undisturbed_generators():
            yield
    finally:
        for module in kept:
            module.restore()
        for tensor in tensors:
            tensor.restore()


#: Entries of a module of torch's own that its forward may replace.
_REGISTRIES = ("_parameters", "_buffers", "_modules")


class _KeptModule:
    """Plain attributes of a module: the objects, and what containers and tensors hold."""

    def __init__(self, module: nn.Module) -> None:
        self._present = vars(module)
        self._values = dict(self._present)
        trusted = is_trusted(module)
        self._contents = {
            name: _content(value)
            for name, value in self._values.items()
            if (name in _REGISTRIES or not trusted) and isinstance(value, _HOLDERS)
        }

    def restore(self) -> None:
        if not _same_entries(self._present, self._values):
            for name in [n for n in self._present if n not in self._values]:
                del self._present[name]
            self._present.update(self._values)
        for name, content in self._contents.items():
            _refill(self._values[name], content)


_HOLDERS = (list, dict, set, Tensor)


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None if _is_unusual(value) else value.detach().clone()
    return content_of(value)


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if content is not None:
            _write_back(value, content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, set) or not _same_entries(value, content):
        value.clear()
        value.update(content)


class _KeptTensor:
    """A parameter or a buffer, with its gradient."""

    def __init__(self, tensor: Tensor, *, copied: bool) -> None:
        self.tensor = tensor
        self.content = tensor.detach().clone() if copied else None
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_content = None if self.grad is None else self.grad.detach().clone()

    def restore(self) -> None:
        if self.content is not None:
            _write_back(self.tensor, self.content)
        if not self.tensor.is_leaf:
            return
        if self.tensor.requires_grad is not self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad
        if self.grad is not None and self.grad_content is not None:
            _write_back(self.grad, self.grad_content)


def _writes_no_weights(module: nn.Module) -> bool:
    """Whether neither the module nor a hook on it could write into its parameters."""
    return is_trusted(module) and not (module._forward_hooks or module._forward_pre_hooks)


def _parameters_of(model: nn.Module) -> list[Tensor]:
    return [p for p in parameters_of(model) if not _is_unusual(p)]


def _buffers_of(model: nn.Module) -> list[Tensor]:
    return [b for b in model.buffers() if not _is_unusual(b)]


def _is_unusual(tensor: Tensor) -> bool:
    """Whether a tensor has no contents that could be copied."""
    return is_lazy(tensor) or tensor.is_meta or tensor.layout is not torch.strided


def _write_back(tensor: Tensor, content: Tensor) -> None:
    # Past autograd and its version counters: a graph of the user's may still hold this tensor.
    if tensor.shape != content.shape or not torch.equal(tensor.detach(), content):
        if tensor.shape != content.shape:  # resized in place
            tensor.data.resize_(content.shape)
        tensor.data.copy_(content)


def _same_entries(present: dict[Any, Any], kept: dict[Any, Any]) -> bool:
    return present.keys() == kept.keys() and all(present[k] is kept[k] for k in kept)
