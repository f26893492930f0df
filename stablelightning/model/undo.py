"""Undoing what a forward left in a model: buffers, draws, metrics, what modules carry along."""

import random
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from stablelightning.model.generators import GeneratorState
from stablelightning.model.modules import modules_of
from stablelightning.model.trust import is_trusted

#: Buffers of more elements are tables that forwards read; they are copied only when their version
#: counter says that they were written (which writes through ``.data`` escape).
_LARGE = 2**20


#: Entries up to which containers and tensors that are no buffers are copied at every batch. Longer
#: ones are histories, and hold what was.
_SMALL = 64


class ForwardUndo:
    """Remembers what a forward in training may change, and can give it back.

    Buffers (contents and identity), the states of torchmetrics' metrics, what modules carry from
    one call to the next as plain tensors or numbers (a recurrent state, a counter), and the global
    generators of torch and Python. Parameters are not remembered: a forward writes none. Made
    once, used at every step: what is remembered is copied into the same storage again.

    Args:
        model: any module; modules and buffers that come and go are noticed.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> undo = ForwardUndo(net)
        >>> undo.take()
        >>> _ = net(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]))
        >>> undo.restore()
        >>> net.running_mean, net.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._generators = GeneratorState()
        self._host = random.getstate()
        self._attributes: list[dict[str, Any]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._metric_states: list[KeptMetric] = []
        self._list()

    def _list(self) -> None:
        modules = modules_of(self._model)
        self._registries = [m._buffers for m in modules]
        self._named = [(own, name, b) for own in self._registries for name, b in own.items()]
        ordinary = {id(b): b for _, _, b in self._named if b is not None and _is_ordinary(b)}
        self._small = [b for b in ordinary.values() if b.numel() <= _LARGE]
        self._large = [b for b in ordinary.values() if b.numel() > _LARGE]
        self._small_copies = [torch.empty_like(b) for b in self._small]
        self._large_copies = [b.detach().clone() for b in self._large]
        self._versions = [b._version for b in self._large]
        self._metrics = [m for m in modules if isinstance(m, Metric)]
        inside = {id(part) for metric in self._metrics for part in modules_of(metric)}
        self._own = [vars(m) for m in modules if not is_trusted(m) and id(m) not in inside]

    def _is_listed(self) -> bool:
        return sum(map(len, self._registries)) == len(self._named) and all(
            own.get(name) is buffer for own, name, buffer in self._named
        )

    def relist(self) -> None:
        """Look for modules that were added or taken away; before the next :meth:`take`."""
        self._list()

    @torch.no_grad()
    def take(self) -> None:
        """Remember everything as it is now."""
        if not self._is_listed():
            self._list()
        if self._small:
            try:
                torch._foreach_copy_(self._small_copies, self._small)
            except RuntimeError:  # a buffer was resized in place
                self._list()
                torch._foreach_copy_(self._small_copies, self._small)
        for place, buffer in enumerate(self._large):
            if buffer._version != self._versions[place]:
                self._large_copies[place].copy_(buffer)
                self._versions[place] = buffer._version
        self._attributes = [dict(own) for own in self._own]
        self._contents = [pair for own in self._own for pair in _small_contents(own)]
        self._metric_states = [KeptMetric(metric) for metric in self._metrics]
        self._generators = GeneratorState()
        self._host = random.getstate()

    @torch.no_grad()
    def restore(self, *, draws: bool = True) -> None:
        """Give back what was remembered last.

        Args:
            draws: whether the generators, too; without, random numbers go on from where they are.
        """
        for own in self._registries:
            own.clear()
        for own, name, buffer in self._named:
            own[name] = buffer
        for buffer, copy in zip(self._small, self._small_copies, strict=True):
            _write(buffer, copy)
        for place, (buffer, copy) in enumerate(zip(self._large, self._large_copies, strict=True)):
            _write(buffer, copy)
            self._versions[place] = buffer._version
        for own, attributes in zip(self._own, self._attributes, strict=True):
            _restore_carried(own, attributes)
        for holder, content in self._contents:
            _refill(holder, content)
        for state in self._metric_states:
            state.restore()
        if draws:
            self._generators.restore()
            random.setstate(self._host)


class KeptMetric:
    """The state of one torchmetrics metric, to be given back.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> mean = MeanMetric()
        >>> mean.update(1.0)
        >>> kept = KeptMetric(mean)
        >>> mean.update(float("inf"))
        >>> kept.restore()
        >>> mean.compute()
        tensor(1.)
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._attributes = dict(vars(metric))
        self._contents = {
            name: _content(self._attributes[name])
            for name in metric._defaults
            if name in self._attributes
        }

    def restore(self) -> None:
        """Give the metric its state back."""
        own = vars(self._metric)
        own.clear()
        own.update(self._attributes)
        for name, content in self._contents.items():
            if isinstance(content, Tensor):
                _write(own[name], content)
            else:  # a list, to which updates append
                own[name][:] = content


def _content(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else list(value)


def _restore_carried(own: dict[str, Any], before: dict[str, Any]) -> None:
    """Put back what a module carries from call to call; all else on it is not the forward's."""
    for name in own.keys() | before.keys():
        present, former = own.get(name), before.get(name)
        if present is former or name.startswith("_") or name == "training":
            continue
        if not (_is_carried(present) and _is_carried(former)):
            continue
        if name in before:
            own[name] = former
        else:
            del own[name]


def _small_contents(own: dict[str, Any]) -> list[tuple[Any, Any]]:
    """What a module's small containers and tensors hold: a mean of losses, for one."""
    found: list[tuple[Any, Any]] = []
    for name, value in own.items():
        if name.startswith("_"):
            continue
        if isinstance(value, Tensor):
            if _is_ordinary(value) and value.numel() <= _SMALL:
                found.append((value, value.detach().clone()))
        elif isinstance(value, list | dict | deque) and len(value) <= _SMALL:
            inside = list(value.values() if isinstance(value, dict) else value)
            if all(map(_is_carried, inside)):
                tensors = [t for t in inside if isinstance(t, Tensor) and t.numel() <= _SMALL]
                found += [(t, t.detach().clone()) for t in tensors if _is_ordinary(t)]
                found.append((value, value.copy()))
    return found


def _refill(holder: Any, content: Any) -> None:
    if isinstance(holder, Tensor):
        _write(holder, content)
        return
    holder.clear()
    if isinstance(holder, dict):
        holder.update(content)
    else:
        holder.extend(content)


def _is_carried(value: Any) -> bool:
    if value is None or isinstance(value, Tensor | int | float):
        return True
    return isinstance(value, tuple | list) and all(map(_is_carried, value))


def _is_ordinary(tensor: Tensor) -> bool:
    unusual = is_lazy(tensor) or tensor.is_meta or tensor.is_inference()
    return not unusual and tensor.layout is torch.strided


def _write(tensor: Tensor, content: Tensor) -> None:
    if tensor.shape != content.shape:  # resized in place
        tensor.resize_(content.shape)
    tensor.copy_(content)
