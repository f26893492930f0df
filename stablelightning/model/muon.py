"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimizer."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from stablelightning.errors import StableLightningWarning
from stablelightning.model.groups import Groups
from stablelightning.model.structure import find_heads, weight_layers

#: Scales Muon's steps so that one rate and one decay serve both (arXiv:2502.16982, section 2.2).
_SAME_SIZE_AS_ADAMW = "match_rms_adamw"


class MuonAdamW(Optimizer):
    """torch's ``Muon`` where it applies, torch's ``AdamW`` for the rest, with one learning rate.

    Muon replaces the update of a matrix by the nearest orthogonal one, and torch's takes nothing
    but matrices. Which parameters get it is in each group's ``"muon"``: :func:`muon_groups` knows
    the roles of layers, and ``StableMixin`` asks it. Of groups that do not say, parameters with two
    dimensions get Muon and the others AdamW; embeddings and the output layer are then among the
    first, and should not be. Both take steps of the same root mean square, so that a rate and a
    weight decay that suit AdamW suit both.

    Args:
        params: parameters, or groups, with ``"muon": True`` or ``False``.
        lr: of both, > 0.
        weight_decay: of both, decoupled, >= 0.
        momentum: of Muon, in [0, 1).
        betas: of AdamW, each in [0, 1).
        eps: of AdamW, > 0.

    Source:
        Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks (and why
        embeddings and the output layer are left out); Liu et al. 2025, arXiv:2502.16982 (the common
        rate).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
        >>> optimizer = MuonAdamW(muon_groups(net), lr=2e-3)
        >>> [(group["muon"], len(group["params"])) for group in optimizer.param_groups]
        [(True, 2), (False, 4)]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        common = {"lr": lr, "weight_decay": weight_decay}
        self._settings: dict[bool, dict[str, Any]] = {
            True: {**common, "momentum": momentum, "adjust_lr_fn": _SAME_SIZE_AS_ADAMW},
            False: {**common, "betas": tuple(betas), "eps": eps},
        }
        super().__init__(params, common)

    @staticmethod
    def groups_for(model: nn.Module, groups: Groups | None = None) -> Groups:
        """See :func:`muon_groups`; ``StableMixin`` looks for a method of this name."""
        return muon_groups(model, groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one that does not say whose it is becomes one or two that do."""
        if "muon" in param_group:
            kind = Muon if param_group["muon"] else AdamW
            # The class itself checks the settings, and fills in those that are left out.
            filled = kind([dict(param_group)], **self._settings[param_group["muon"]])
            super().add_param_group(filled.param_groups[0])
            return
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        rest = {key: value for key, value in param_group.items() if key != "params"}
        for muon in (True, False):
            if inside := [p for p in params if (p.ndim == 2) is muon]:
                self.add_param_group({"params": inside, "muon": muon, **rest})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with both.

        Args:
            closure: computes the loss anew, with gradients; returned is what it returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for muon, kind in ((True, Muon), (False, AdamW)):
            groups = [group for group in self.param_groups if group["muon"] is muon]
            if groups:
                part: Optimizer = kind(groups[0]["params"][:1])
                # It works on our own groups and state, which schedules, checkpoints and whoever
                # reads an optimizer see as those of one.
                part.param_groups, part.state = groups, self.state
                part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._settings = {True: {}, False: {}} | vars(self).get("_settings", {})


def muon_groups(model: nn.Module, groups: Groups | None = None) -> Groups:
    """Mark which parameters Muon is for: the matrices of weight layers before the output layer.

    Embeddings, the output layers, convolutions (four dimensions), biases and scales are AdamW's.

    Args:
        model: any module with a weight layer.
        groups: parameter groups of ``model`` that are split further, as of ``decay_groups``;
            ``None`` for all parameters together.

    Returns:
        Groups for :class:`MuonAdamW`, those of Muon marked ``"muon": True``; none is empty.

    Raises:
        ModelError: ``model`` has no weight layer.

    Source:
        Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
        >>> [(group["muon"], len(group["params"])) for group in muon_groups(net)]
        [(True, 1), (False, 4)]
    """
    heads = find_heads(model)
    kept_out = {id(p) for m in (*heads, *_embeddings(model)) for p in m.parameters()}
    matrices = {
        id(p)
        for layer in weight_layers(model)
        for p in layer.parameters(recurse=False)
        if p.ndim == 2 and id(p) not in kept_out
    }
    if not matrices:
        warnings.warn(
            f"Muon takes matrices of hidden layers, and {type(model).__name__} has none "
            "(convolutions have four dimensions): all of it is trained with AdamW.",
            StableLightningWarning,
            stacklevel=2,
        )
    parts: Groups = []
    groups = [{"params": list(model.parameters())}] if groups is None else groups
    for group in groups:
        rest = {key: value for key, value in group.items() if key not in ("params", "name")}
        for muon in (True, False):
            inside = [p for p in group["params"] if (id(p) in matrices) is muon]
            name = "muon" if muon else "adamw"
            name = f"{group['name']}/{name}" if "name" in group else name
            parts.append({"name": name, "params": inside, "muon": muon, **rest})
    return [part for part in parts if part["params"]]


def _embeddings(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
