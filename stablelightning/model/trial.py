"""One trial step of an optimizer: how far it would throw the model."""

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.model.generators import undisturbed_generators
from stablelightning.model.step import TrainingStep


@dataclass(frozen=True)
class Trial:
    """What one step did to the loss on the very batch that it was computed from.

    Args:
        learning_rate: the largest of the optimizer's groups.
        loss_before: loss before the step.
        loss_after: loss after it, same batch and same dropout masks.
        promised: by how much the loss would fall if it were linear: minus the product of gradient
            and step.
        moved: root mean square change of the output over its root mean square before.
    """

    learning_rate: float
    loss_before: float
    loss_after: float
    promised: float
    moved: float


def try_step(
    model: nn.Module,
    step: TrainingStep,
    optimizer: torch.optim.Optimizer,
    gradients: Mapping[nn.Parameter, Tensor],
) -> Trial | None:
    """Take one step with a copy of the optimizer and look how far the loss and the output move.

    Costs one forward before and one after the step; the gradients are those that were measured.
    The caller preserves the model (:func:`~stablelightning.model.preserve.preserved`); the
    optimizer itself, its state and its counters are never touched.

    Args:
        model: in training mode; its parameters are moved.
        step: its training step.
        optimizer: over parameters of ``model``.
        gradients: of those parameters.

    Returns:
        ``None`` if the optimizer cannot be copied.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> step = TrainingStep(net, (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.25)
        >>> trial = try_step(net, step, sgd, {net.weight: torch.tensor([[2.0]])})
        >>> trial.loss_before, trial.loss_after, trial.promised
        (1.0, 0.25, 1.0)
    """
    known = held_by(optimizer, gradients)
    clone = copied(optimizer)
    if clone is None:
        return None
    with torch.no_grad():
        before, output = _evaluate(step)
        kept = [p.detach().clone() for p in known]
        for parameter in known:
            parameter.grad = gradients[parameter]
        try:
            clone.step()
        except (TypeError, RuntimeError):  # it wants a closure (LBFGS), or scaled gradients
            return None
        moves = [p.detach() - old for p, old in zip(known, kept, strict=True)]
        products = [(gradients[p] * move).sum() for p, move in zip(known, moves, strict=True)]
        after, output_after = _evaluate(step)
    return Trial(
        learning_rate=max(float(group["lr"]) for group in optimizer.param_groups),
        loss_before=before,
        loss_after=after,
        promised=-sum(float(product) for product in products),
        moved=_relative_move(output, output_after),
    )


def held_by(
    optimizer: torch.optim.Optimizer, gradients: Mapping[nn.Parameter, Tensor]
) -> list[nn.Parameter]:
    """Those of the optimizer's parameters that have a gradient here.

    Example:
        >>> sgd = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
        >>> held_by(sgd, {nn.Parameter(torch.zeros(1)): torch.zeros(1)})
        []
    """
    return [p for group in optimizer.param_groups for p in group["params"] if p in gradients]


def copied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """A second optimizer over the same parameters, with a copy of the state of the first.

    Returns:
        ``None`` for a class whose constructor does not take what torch's do.
    """
    groups = [
        {k: v for k, v in group.items() if k != "params"} | {"params": list(group["params"])}
        for group in optimizer.param_groups
    ]
    try:
        clone = type(optimizer)(groups, **_settings(optimizer))
        if optimizer.state:
            clone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    except Exception:  # whatever the constructor of a class that nobody here knows does
        return None
    return clone


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its defaults as far as its constructor takes them; AdamW has one that it does not."""
    parameters = inspect.signature(type(optimizer)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(optimizer.defaults)
    return {name: value for name, value in optimizer.defaults.items() if name in parameters}


def _evaluate(step: TrainingStep) -> tuple[float, Tensor | None]:
    with undisturbed_generators():
        loss = float(step.run())
    output = step.output
    return loss, output.detach().clone() if isinstance(output, Tensor) else None


def _relative_move(before: Tensor | None, after: Tensor | None) -> float:
    if before is None or after is None or before.shape != after.shape:
        return math.nan
    size = float(before.float().norm())
    return float((after.float() - before.float()).norm()) / size if size > 0 else math.nan
