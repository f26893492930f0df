"""Gradients accumulated so far, kept while one more batch is added to them."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class KeptGradients:
    """A copy of the gradients before a batch's backward, to be given back if the batch is bad.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.sum().backward()
        >>> kept = KeptGradients()
        >>> kept.take([weight])
        >>> (weight * float("nan")).sum().backward()
        >>> kept.restore()
        >>> weight.grad
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}

    @torch.no_grad()
    def take(self, parameters: Iterable[Tensor]) -> None:
        """Copy the gradients that there are, into the same storage as the last time if it fits."""
        self._parameters = list(parameters)
        present = {id(p): p.grad for p in self._parameters if p.grad is not None}
        plain = all(g.layout is torch.strided for g in present.values())
        if plain and present.keys() == self._copies.keys() and present:
            torch._foreach_copy_(list(self._copies.values()), list(present.values()))
        else:
            self._copies = {key: g.detach().clone() for key, g in present.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give back what was copied, and nothing where there was nothing."""
        for parameter in self._parameters:
            kept = self._copies.get(id(parameter))
            if kept is None:
                parameter.grad = None
            elif parameter.grad is None or kept.layout is not torch.strided:
                parameter.grad = kept.clone()
            else:
                parameter.grad.copy_(kept)

    @torch.no_grad()
    def average(self) -> None:
        """Take the mean over processes of the present gradients, as DDP would have; all must ask.

        A gradient that only some processes have is zero on the others; one that none has stays
        away.
        """
        device = next((p.device for p in self._parameters), torch.device("cpu"))
        held = torch.tensor([p.grad is not None for p in self._parameters], device=device).int()
        torch.distributed.all_reduce(held)
        world = torch.distributed.get_world_size()
        for parameter, number in zip(self._parameters, held.tolist(), strict=True):
            if not number:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(world)  # before the sum, as DDP does, for the same rounding
            torch.distributed.all_reduce(parameter.grad)


def parameters_of_all(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """The parameters of all optimizers, each once."""
    every = (p for o in optimizers for group in o.param_groups for p in group["params"])
    return list({id(p): p for p in every}.values())


def drop_gradients(optimizers: Iterable[Optimizer]) -> None:
    """Leave no gradient to any parameter of these optimizers."""
    for parameter in parameters_of_all(optimizers):
        parameter.grad = None
