"""What a forward leaves on the modules of a model, noticed and taken back."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.model.modules import content_of, modules_of
from stablelightning.model.trust import is_trusted


class Footprint:
    """What a forward leaves on the modules that the user wrote; taken back on the way out.

    A pass under vmap would leave handles of vmap there, and a forward that keeps a count or a
    cache is not the same function on every call: such models are sampled one pass at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in modules_of(model) if not is_trusted(m)]
        self._buffers = [b for b in model.buffers() if not is_lazy(b) and b.layout is torch.strided]

    def __enter__(self) -> "Footprint":
        self._before = [self._look(m) for m in self._modules]
        self._contents = [b.clone() for b in self._buffers]
        return self

    def changed(self) -> bool:
        """Whether an attribute is another object, a container or a buffer holds something else."""
        return bool(self._written()) or any(
            not _same(before, self._look(module))
            for module, before in zip(self._modules, self._before, strict=True)
        )

    def _written(self) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self._buffers, self._contents, strict=True)
        return [(b, old) for b, old in pairs if b.shape != old.shape or not torch.equal(b, old)]

    def __exit__(self, *_: object) -> None:
        for buffer, content in self._written():
            buffer.data.copy_(content)
        for module, before in zip(self._modules, self._before, strict=True):
            if _same(before, self._look(module)):
                continue
            attributes = vars(module)
            for name in [n for n in attributes if n not in before and n != "training"]:
                del attributes[name]
            for name, (value, content) in before.items():
                attributes[name] = value
                _refill(value, content)

    @staticmethod
    def _look(module: nn.Module) -> dict[str, tuple[Any, Any]]:
        return {
            name: (value, content_of(value) if isinstance(value, list | dict | set) else None)
            for name, value in vars(module).items()
            if name != "training"
        }


def _same(before: dict[str, tuple[Any, Any]], after: dict[str, tuple[Any, Any]]) -> bool:
    return before.keys() == after.keys() and all(
        value is after[name][0] and _same_content(content, after[name][1])
        for name, (value, content) in before.items()
    )


def _same_content(a: Any, b: Any) -> bool:
    if a is None:
        return True
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k in b and a[k] is b[k] for k in a)
    return all(x is y for x, y in zip(a, b, strict=True)) if isinstance(a, list) else bool(a == b)


def _refill(value: Any, content: Any) -> None:
    if content is None:
        return
    if isinstance(value, list):
        value[:] = content
    else:
        value.clear()
        value.update(content)
