"""The gradients that an optimizer is about to be given, and their norm, computed once per step."""

from contextlib import suppress
from operator import attrgetter, call, is_
from typing import cast
from weakref import WeakKeyDictionary, ref

import lightning as L
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from stablelightning.errors import ModelError

#: Elements of a gradient, in the mean, up to which a copy of all in one piece is faster than to
#: call a kernel for each (on the CPU; measured).
_SMALL = 4096

#: Types whose range holds the sum of squares.
_WIDE = {torch.float32, torch.float64}


class Gradients:
    """The gradients of one optimizer at one step, and what was computed of them.

    Made by :func:`gradients_of`.

    Args:
        tensors: the gradients, whole; in the order of the optimizer's parameters, those that have
            one.
        scale: the loss scale that is still in them, ``None`` if there is none.
        norms: what was computed of these very gradients before, by the p of the norm.
    """

    def __init__(
        self, tensors: list[Tensor], scale: Tensor | None, norms: dict[float, Tensor] | None = None
    ) -> None:
        self.tensors = tensors
        self.scale = scale
        self._norms = {} if norms is None else norms

    @property
    def is_empty(self) -> bool:
        """Whether there is no gradient at all: the step is skipped, or nothing was learned."""
        return not self.tensors

    def norm(self, norm_type: float = 2.0) -> Tensor:
        """The norm of all gradients as one vector, without the loss scale.

        Args:
            norm_type: the p of the norm, > 0; ``math.inf`` for the largest absolute value.

        Returns:
            A scalar on the first gradient's device, at least float32; 0 where there is none. Not
            finite where a gradient is not, and where the sum of squares overflows. Nothing waits
            for the device.
        """
        if norm_type not in self._norms:
            found = _joint_norm(self.tensors, norm_type)
            self._norms[norm_type] = found if self.scale is None else found / self.scale
        return self._norms[norm_type]


class _Seen:
    """Which gradients were seen, as they were; holds none of them alive.

    Loops in Python over hundreds of tensors cost as much as their norm: these are in C.
    """

    def __init__(self, tensors: list[Tensor], versions: list[int], scale: Tensor | None) -> None:
        self._references = list(map(ref, tensors))
        self._versions = versions
        self._scale = scale
        self.norms: dict[float, Tensor] = {}

    def are(self, tensors: list[Tensor], versions: list[int], scale: Tensor | None) -> bool:
        """Whether these very gradients were seen, and have not been written since."""
        return (
            versions == self._versions
            and scale is self._scale
            and all(map(is_, map(call, self._references), tensors))
        )


#: What was computed at the present step of an optimizer; another step's gradients are not these.
_PRESENT: WeakKeyDictionary[Optimizer, _Seen] = WeakKeyDictionary()

_version = attrgetter("_version")
_dtype = attrgetter("dtype")
_requires_grad = attrgetter("requires_grad")


def gradients_of(trainer: L.Trainer, optimizer: Optimizer) -> Gradients:
    """The gradients of the parameters of an optimizer, for ``on_before_optimizer_step``.

    What one callback computed is there for the next one, until a gradient is replaced or written.

    Args:
        trainer: whose precision plugin may hold a scaler. Lightning has unscaled the gradients by
            then, except those of fused optimizers, which unscale within their step.
        optimizer: the plain one, as hooks are given it.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> trainer = L.Trainer(accelerator="cpu", barebones=True)
        >>> gradients_of(trainer, torch.optim.SGD([weight])).norm()
        tensor(5.)
    """
    tensors = [
        gradient
        for group in optimizer.param_groups
        for parameter in group["params"]
        if (gradient := parameter.grad) is not None
    ]
    scale = _loss_scale(trainer, optimizer)
    versions = list(map(_version, tensors))
    seen = _PRESENT.get(optimizer)
    if seen is None or not seen.are(tensors, versions, scale):
        seen = _PRESENT[optimizer] = _Seen(tensors, versions, scale)
    return Gradients(tensors, scale, seen.norms)


def _loss_scale(trainer: L.Trainer, optimizer: Optimizer) -> Tensor | None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not _optimizer_handles_unscaling(optimizer):
        return None
    return cast(Tensor, scaler._get_scale_async())


def _joint_norm(gradients: list[Tensor], norm_type: float) -> Tensor:
    if gradients and gradients[0].is_cpu:
        flat = _flat_if_small(gradients)
        if flat is not None:
            return cast(Tensor, torch.linalg.vector_norm(flat, norm_type))
    if set(map(_dtype, gradients)) <= _WIDE and gradients:
        # What get_total_norm comes to, without its bookkeeping, which costs as much again.
        with suppress(RuntimeError):  # sparse ones, or several devices
            norms = torch.stack(torch._foreach_norm(gradients, norm_type))
            return cast(Tensor, torch.linalg.vector_norm(norms, norm_type))
    return get_total_norm([_values(gradient) for gradient in gradients], norm_type)


def _flat_if_small(gradients: list[Tensor]) -> Tensor | None:
    """All in one piece, where that is faster than a kernel for each."""
    if sum(map(Tensor.numel, gradients)) > _SMALL * len(gradients):
        return None
    try:
        flat = torch._C._nn.flatten_dense_tensors(gradients)
    except RuntimeError:  # sparse ones, or several devices
        return None
    return flat if flat.dtype in _WIDE else None


def _values(gradient: Tensor) -> Tensor:
    """What the norm is taken of: stored values, in a type whose range holds the sum of squares."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    small = gradient.dtype in (torch.float16, torch.bfloat16)
    return gradient.float() if small else gradient


def count_trained(optimizer: Optimizer) -> int:
    """How many of an optimizer's parameters require a gradient, the same on every process.

    Example:
        >>> weight, fixed = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
        >>> count_trained(torch.optim.SGD([weight, fixed]))
        1
    """
    return sum(sum(map(_requires_grad, group["params"])) for group in optimizer.param_groups)


def require_graph(loss: Tensor, module: L.LightningModule) -> None:
    """Refuse a loss from which nothing can be learned, before torch does in words of its own.

    Args:
        loss: what is about to run backward.
        module: whose ``training_step`` gave it; one with a ``backward`` of its own may do anything.

    Raises:
        ModelError: no gradient flows from the loss.

    Example:
        >>> require_graph(torch.ones(1, requires_grad=True).sum(), L.LightningModule())
    """
    if not loss.requires_grad and not is_overridden("backward", module):
        raise ModelError(
            "a loss must depend on the model's parameters, and no gradient flows from that of "
            f"{type(module).__name__}.training_step to them; leave out .detach(), "
            ".item() and torch.no_grad()."
        )
