"""Whose code is known to be a function of its inputs, flags and weights."""

from torch import nn

_PACKAGES = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.", "timm.")


def is_trusted(module: nn.Module) -> bool:
    """Whether a module's class comes from torch.nn, torchvision or timm.

    Their forwards keep no state of their own, so that a call may be skipped where its result is
    known; what a user wrote is always run.
    """
    return type(module).__module__.startswith(_PACKAGES)
