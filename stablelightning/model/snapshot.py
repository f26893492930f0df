"""A good state of a whole training, kept in memory to come back to."""

import copy
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stablelightning.model.kept_optimizer import KeptOptimizer


class Snapshot:
    """Copies of weights, buffers, optimizers, schedulers and the loss scaler.

    Weights that no optimizer holds and no gradient reaches are left out: nothing moves them. Where
    some of them begin to move, :meth:`complete` takes them up.

    Args:
        model: the model that is trained.
        optimizers: its optimizers.
        schedulers: their schedulers; anything with ``state_dict`` and ``load_state_dict``.
        scaler: the loss scaler, where there is one.
        followers: modules that average the model's weights, under the same names or behind
            ``module.``; they come back with it.
        host: whether tensors are kept in host memory; what comes back is the same to the bit.

    Attributes:
        weights: copies of parameters and buffers, by their names.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> before = net.weight.detach().clone()
        >>> snapshot = Snapshot(net, [sgd], [])
        >>> net(torch.ones(1, 2)).sum().backward(), sgd.step()
        (None, None)
        >>> snapshot.restore()
        >>> torch.equal(net.weight, before)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        schedulers: Iterable[Any],
        *,
        scaler: Any = None,
        followers: Sequence[nn.Module] = (),
        host: bool = False,
    ) -> None:
        self._model = model
        self._trained = list(optimizers)
        self._followers = list(followers)
        self._schedulers = list(schedulers)
        self._scaler = scaler
        self._host = host
        self.weights: dict[str, Tensor] = {}
        self._averages: list[dict[str, Tensor]] = [{} for _ in self._followers]
        self.complete()
        self._optimizers = [KeptOptimizer(optimizer, host=host) for optimizer in optimizers]
        self._schedules = [copy.deepcopy(scheduler.state_dict()) for scheduler in self._schedulers]
        self._scale = {} if scaler is None else dict(scaler.state_dict())

    def complete(self) -> None:
        """Copy what moves from now on and did not before: it is what it was then."""
        self._add(self.weights, _moving(self._model, self._trained))
        for follower, kept in zip(self._followers, self._averages, strict=True):
            self._add(kept, _following(follower, self.weights.keys()))

    def _add(self, kept: dict[str, Tensor], present: Mapping[str, Tensor]) -> None:
        for name, tensor in present.items():
            if name not in kept:
                device = "cpu" if self._host else tensor.device
                kept[name] = tensor.detach().to(device, copy=True)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring everything back, in place; gradients are dropped."""
        _copy_back(self.weights, self._model)
        for follower, kept in zip(self._followers, self._averages, strict=True):
            _copy_back(kept, follower)
        for parameter in self._model.parameters():
            parameter.grad = None
        for scheduler, state in zip(self._schedulers, self._schedules, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer in self._optimizers:  # after schedulers, which may write rates
            optimizer.restore()
        if self._scaler is not None and self._scale:
            self._scaler.load_state_dict(dict(self._scale))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain types."""
        return {
            "weights": {name: value.clone() for name, value in self.weights.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "schedules": copy.deepcopy(self._schedules),
            "scale": dict(self._scale),
            "averages": [
                {name: value.clone() for name, value in kept.items()} for kept in self._averages
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold what another snapshot of the same training held."""
        _load(self.weights, state["weights"])
        for mine, kept in zip(self._averages, state["averages"], strict=False):
            _load(mine, kept)
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self._schedules = copy.deepcopy(state["schedules"])
        self._scale = dict(state["scale"])


def _moving(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    weights: dict[str, Tensor] = {
        name: p for name, p in model.named_parameters() if p.requires_grad or id(p) in held
    }
    tensors = weights | dict(model.named_buffers())
    return {name: t for name, t in tensors.items() if not is_lazy(t) and not t.is_meta}


def _following(follower: nn.Module, names: Container[str]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {
        name: p
        for name, p in follower.named_parameters()
        if name in names or name.removeprefix("module.") in names
    }
    return weights | dict(follower.named_buffers())


def _copy_back(kept: Mapping[str, Tensor], model: nn.Module) -> None:
    present = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in kept.items():
        tensor = present.get(name)
        if tensor is not None and tensor.shape == value.shape:
            tensor.copy_(value)


def _load(mine: dict[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, value in kept.items():
        device = mine[name].device if name in mine else "cpu"
        mine[name] = value.to(device, copy=True)
