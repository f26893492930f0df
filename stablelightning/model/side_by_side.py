"""Passes of plain layers for all members at once, without ``vmap``: one kernel for each layer.

``vmap`` gives every operation the member axis, at a price that is fixed, and more than a small
network's arithmetic. Chains of plain layers need no such help: each has a form for stacked weights.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as hooks_of_all

from stablelightning.nn import MLP

#: Element by element and without parameters: they do not mind an axis more.
_POINTWISE = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Tanh,
    nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Identity,
)  # fmt: skip

#: What may hang on a module and would not be told of a pass that goes around it.
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_HOOKS_OF_ALL = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
    "_global_backward_pre_hooks",
)  # fmt: skip


def layers_of(network: nn.Module) -> list[nn.Module] | None:
    """The layers of a network that is a chain of plain ones; ``None`` where it is anything else.

    Linear layers, layer norms, dropout, pointwise activations, in ``nn.Sequential`` or
    :class:`~stablelightning.nn.MLP`; nothing with hooks, for which layers must be called.

    Example:
        >>> [type(layer).__name__ for layer in layers_of(MLP(4, 2, hidden=[8]))]
        ['Flatten', 'Linear', 'ReLU', 'Dropout', 'Linear']
        >>> layers_of(nn.Conv2d(1, 1, 3)) is None
        True
    """
    if any(getattr(hooks_of_all, name) for name in _HOOKS_OF_ALL):
        return None
    layers = list(_leaves(network))
    return layers if all(map(_is_plain, layers)) else None


#: Rows are flattened by a perceptron before its first layer.
_FLATTEN = nn.Flatten()


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is MLP and not has_hooks(module):
        yield _FLATTEN
        yield from _leaves(module.body)
        yield from _leaves(module.head)
    elif type(module) is nn.Sequential and not has_hooks(module):
        for child in module:
            yield from _leaves(child)
    else:
        yield module


def has_hooks(module: nn.Module) -> bool:
    """Whether something is to be told of a module's passes, or its ``forward`` was replaced."""
    attributes = vars(module)
    forward = attributes.get("forward")  # Lightning puts the class's own there, to call a step
    replaced = (
        forward is not None and getattr(forward, "__func__", None) is not type(module).forward
    )
    return replaced or any(attributes[name] for name in _HOOKS)


def _is_plain(layer: nn.Module) -> bool:
    kind = type(layer)
    if kind not in _FORMS or has_hooks(layer):
        return False
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return not getattr(layer, "inplace", False)


def run_side_by_side(
    layers: Sequence[nn.Module], rows: Tensor, members: int, *, read: Callable[[Tensor], Tensor]
) -> Tensor:
    """The outputs of all members for the same rows.

    Args:
        layers: of :func:`layers_of`; their parameters are stacked.
        rows: ``(N, ...)``, two axes or more.
        members: M.
        read: gives the stack ``(M, ...)`` for what is in the place of a parameter.

    Returns:
        ``(M, N, ...)``.

    Example:
        >>> stack = nn.Linear(4, 2)
        >>> stack.weight = nn.Parameter(torch.randn(5, 2, 4))
        >>> stack.bias = nn.Parameter(torch.randn(5, 2))
        >>> run_side_by_side([stack], torch.randn(8, 4), 5, read=lambda tensor: tensor).shape
        torch.Size([5, 8, 2])
    """
    run = _Pass(rows, members, read)
    for layer in layers:
        _FORMS[type(layer)](run, layer)
    return run.own()


class _Pass:
    """What has become of the rows; the members share it until something differs between them."""

    def __init__(self, rows: Tensor, members: int, read: Callable[[Tensor], Tensor]) -> None:
        self.values = rows
        self.shared = True
        self.members = members
        self.read = read

    def own(self) -> Tensor:
        """The values ``(M, N, ...)``."""
        if self.shared:
            self.values = self.values.expand(self.members, *self.values.shape)
            self.shared = False
        return self.values

    def linear(self, layer: nn.Linear) -> None:
        # Weights on the left: their gradients then come in the layout of the weights, uncopied.
        weight = self.read(layer.weight)
        bias: Tensor | None = layer.bias if layer.bias is None else self.read(layer.bias)
        if self.shared:  # one product with the units of all members
            lead = self.values.shape[:-1]
            rows, units = self.values.flatten(0, -2), weight.flatten(0, 1)
            if bias is None:
                product = torch.mm(units, rows.mT)
            else:
                product = torch.addmm(bias.reshape(-1, 1), units, rows.mT)
            product = product.view(*weight.shape[:2], len(rows))
        else:
            lead = self.values.shape[1:-1]
            rows = self.values.flatten(1, -2)
            if bias is None:
                product = torch.bmm(weight, rows.mT)
            else:
                product = torch.baddbmm(bias.unsqueeze(-1), weight, rows.mT)
        self.shared = False
        self.values = product.mT if len(lead) == 1 else product.mT.unflatten(1, lead)

    def layer_norm(self, layer: nn.LayerNorm) -> None:
        normed = functional.layer_norm(self.own(), layer.normalized_shape, eps=layer.eps)
        for parameter, apply in ((layer.weight, torch.mul), (layer.bias, torch.add)):
            if parameter is not None:
                stack = self.read(parameter)
                ones = [1] * (normed.ndim - stack.ndim)
                normed = apply(normed, stack.reshape(len(stack), *ones, *stack.shape[1:]))
        self.values = normed

    def dropout(self, layer: nn.Dropout) -> None:
        if layer.training and layer.p > 0:
            self.values = functional.dropout(self.own(), layer.p)

    def flatten(self, layer: nn.Flatten) -> None:
        self.values = self.values.flatten(1 if self.shared else 2)

    def pointwise(self, layer: nn.Module) -> None:
        self.values = layer.forward(self.values)


_FORMS: dict[type[nn.Module], Callable[..., None]] = {
    nn.Linear: _Pass.linear,
    nn.LayerNorm: _Pass.layer_norm,
    nn.Flatten: _Pass.flatten,
    nn.Dropout: _Pass.dropout,
    **dict.fromkeys(_POINTWISE, _Pass.pointwise),
}
