"""What is added to a finished network without renaming a weight: skips, scales and norms.

A wrapper would rename every parameter inside it, and its checkpoints would no longer load. Here a
``Sequential`` stays the same object and learns where to skip, and any other module gets a child and
a hook.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stablelightning.errors import ModelError, RecipeError

#: Names of the children that are added.
ADDED_SKIP, ADDED_NORM, ADDED_SCALE = "added_skip", "added_norm", "added_scale"

_SKIP_SCALE = "skip_scale_"


class SkippingSequential(nn.Sequential):
    """A ``Sequential`` in which runs of children are residual branches with a learned scale.

    ``x + scale * run(x)`` in the place of ``run(x)``. Children keep their names, and so do all
    parameters; new are ``skip_scale_0``, ``skip_scale_1``, ...: one number for each run.

    Attributes:
        spans: names of the first and the last child of each run, in order, not overlapping.

    Source:
        Bachlechner et al. 2020, arXiv:2003.04887 (a learned scale that starts at zero).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> same = SkippingSequential.converted(net, [("0", "1")])
        >>> same is net, list(net.state_dict())
        (True, ['skip_scale_0', '0.weight', '0.bias', '2.weight', '2.bias'])
        >>> rows = torch.randn(3, 4)
        >>> torch.equal(net(rows), net[2](rows))  # the scale is zero at first
        True
    """

    spans: tuple[tuple[str, str], ...] = ()

    @classmethod
    def converted(
        cls, container: nn.Sequential, spans: Iterable[tuple[str, str]], *, scale: float = 0.0
    ) -> "SkippingSequential":
        """Let a ``Sequential`` skip runs of its children, in place: it stays the same object.

        Args:
            container: exactly an ``nn.Sequential``; changed.
            spans: names of the first and the last child of each run, which must keep the shape.
            scale: of every run at first.

        Raises:
            ModelError: it is of another class.
            RecipeError: a span does not name children in their order, or overlaps another.
        """
        if type(container) is not nn.Sequential:
            raise ModelError(
                "only an nn.Sequential can be given skips in place, got "
                f"{type(container).__name__}; write them into its forward."
            )
        spans = tuple((first, last) for first, last in spans)
        _check_spans(list(container._modules), spans)
        tensor = next(container.parameters(), torch.zeros(()))
        container.__class__ = cls
        skipping = cast(SkippingSequential, container)
        skipping.spans = spans
        for number in range(len(spans)):
            value = torch.tensor(scale, dtype=tensor.dtype, device=tensor.device)
            skipping.register_parameter(f"{_SKIP_SCALE}{number}", nn.Parameter(value))
        return skipping

    def forward(self, input: Any) -> Any:
        """Run the children in order, and add to each run what went into it."""
        number = 0
        kept: Any = None
        for name, child in self._modules.items():
            runs = number < len(self.spans)
            if runs and name == self.spans[number][0]:
                kept = input
            input = child(input)
            if runs and name == self.spans[number][1]:
                input = kept + getattr(self, f"{_SKIP_SCALE}{number}") * input
                number += 1
        return input

    def extra_repr(self) -> str:
        """Where it skips."""
        return f"skips={len(self.spans)}"


def _check_spans(names: list[str], spans: tuple[tuple[str, str], ...]) -> None:
    place = -1
    for first, last in spans:
        known = first in names and last in names
        if not known or not place < names.index(first) <= names.index(last):
            raise RecipeError(
                f"spans must name children in their order without overlap, got {first!r} to "
                f"{last!r} among {', '.join(names)}."
            )
        place = names.index(last)


class AddedSkip(nn.Module):
    """Make a module that keeps the shape a residual branch: ``x + scale * module(x)``.

    Args:
        scale: the learned scale at first.

    Example:
        >>> layer, rows = nn.Linear(4, 4), torch.randn(3, 4)
        >>> AddedSkip().around(layer)
        >>> torch.equal(layer(rows), rows), list(layer.state_dict())
        (True, ['weight', 'bias', 'added_skip.scale'])
    """

    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, input: Tensor, output: Tensor) -> Tensor:
        """Add the scaled output to the input."""
        return input + self.scale * output

    def around(self, module: nn.Module) -> None:
        """Act on ``module`` from now on, as a child of it."""
        _attach(module, ADDED_SKIP, self, _Skip(self))


class AddedScale(nn.Module):
    """Multiply what a module gives by a learned number.

    Args:
        scale: its value at first; zero makes a residual branch the identity.

    Example:
        >>> layer, rows = nn.Linear(4, 4), torch.randn(3, 4)
        >>> AddedScale(0.0).behind(layer)
        >>> layer(rows).abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, input: Tensor) -> Tensor:
        """Multiply."""
        return self.scale * input

    def behind(self, module: nn.Module) -> None:
        """Act on the output of ``module`` from now on, as a child of it."""
        _attach(module, ADDED_SCALE, self, _Behind(self))


def add_norm(module: nn.Module, norm: nn.Module) -> None:
    """Let ``norm`` act on the output of ``module`` from now on, as its child ``added_norm``.

    Args:
        module: gives a tensor, or a tuple that begins with one (a recurrent layer).
        norm: any module for such a tensor.

    Example:
        >>> layer = nn.Linear(4, 8)
        >>> add_norm(layer, nn.BatchNorm1d(8))
        >>> layer(torch.randn(64, 4)).mean().abs() < 1e-6
        tensor(True)
    """
    _attach(module, ADDED_NORM, norm, _Behind(norm))


def _attach(module: nn.Module, name: str, child: nn.Module, hook: "_Hook") -> None:
    if name in module._modules:
        raise ModelError(
            f"{type(module).__name__} must not have a child {name} yet, and it has; one is enough."
        )
    tensor = next(module.parameters(), None)
    if tensor is not None:
        child.to(tensor.device, tensor.dtype if tensor.is_floating_point() else None)
    module.add_module(name, child.train(module.training))
    hook.handle = module.register_forward_hook(hook)


class _Hook:
    """A class and not a closure, so that models pickle and copies act by their own child.

    The handle travels with it: torch numbers hooks from zero in each process, and a later hook
    would take the number of one that was unpickled.
    """

    def __init__(self, child: nn.Module) -> None:
        self.child = child
        self.handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        raise NotImplementedError


class _Skip(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.child(args[0], output)


class _Behind(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if type(output) is tuple and output:
            return (self.child(output[0]), *output[1:])
        return self.child(output)
