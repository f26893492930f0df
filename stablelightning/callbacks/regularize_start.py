"""A penalty on the distance from where weights began: fine-tuning that forgets less (L2-SP)."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from stablelightning.callbacks.after_step import RegularizeWeights
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.functional.regularize import (
    l2_penalty,
    shrink_,
    shrink_towards_,
    start_penalty,
)
from stablelightning.model.structure import find_heads

#: What torch.compile puts into the names of a module that it wraps.
_COMPILED = "_orig_mod."
#: Weights that begin at zero have no length that a distance could be a share of.
_TINY = 1e-30


class RegularizeToStart(RegularizeWeights):
    r"""L2-SP: every weight is pulled towards where it began, those of the new head towards zero.

    For fine-tuning. L2 and weight decay pull a pretrained network towards zero, away from what it
    has learned; this pulls it back there. After each step the distance of a weight from its start
    is divided by one plus learning rate times strength, which is exact whatever the optimizer is.
    The head begins anew, and gets plain L2. Biases, norms and PReLU slopes are left alone
    (:func:`~stablelightning.model.groups.decayed_parameters`), and so is what is frozen: it is at
    its start.

    The start is what weights are when training begins: loaded, pretrained and initialized by then.
    Checkpoints hold it, so that a resumed run is pulled to the same place, to the bit; they grow by
    the size of the weights.

    Logged: ``regularize/penalty``
    (:math:`\frac{\lambda}{2} \sum (w - w_0)^2 + \frac{\beta}{2} \sum_{\text{head}} w^2`) and
    ``regularize/distance``, the length of :math:`w - w_0` as a share of that of :math:`w_0`.

    Args:
        strength: the factor :math:`\lambda` > 0 of the pull towards the start.
        head_strength: the factor :math:`\beta` >= 0 of plain L2 on the head; 0 leaves it alone.
        head: dotted names of the modules that begin anew, for more than the last layer (or ``[]``,
            for none); ``None`` finds the last layer.

    Raises:
        RecipeError: a setting is out of its range, or names nothing; the strategy shards the
            weights.

    Source:
        Li, Grandvalet, Davoine 2018, arXiv:1802.01483 (``strength`` and ``head_strength`` are their
        :math:`\alpha` and :math:`\beta`); Parikh, Boyd 2014, Proximal Algorithms, section 6.1.1.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> model = BoringModel()
        >>> start = model.layer.weight.detach().clone()
        >>> pull = RegularizeToStart(1e6, head=[])  # so strong that nothing moves
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=5,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[pull],
        ... )
        >>> trainer.fit(model)
        >>> torch.allclose(model.layer.weight, start, atol=1e-4)
        True
    """

    decays = True

    def __init__(
        self,
        strength: float = 0.1,
        *,
        head_strength: float = 0.01,
        head: list[str] | None = None,
    ) -> None:
        if not _is_number(strength) or not 0 < strength < math.inf:
            raise RecipeError(
                f"strength must be > 0, got {strength!r}; to stop the penalty, remove "
                "RegularizeToStart."
            )
        if not _is_number(head_strength) or not 0 <= head_strength < math.inf:
            raise RecipeError(f"head_strength must be >= 0, got {head_strength!r}.")
        super().__init__()
        self.strength = strength
        self.head_strength = head_strength
        self.head = head
        self._starts: dict[str, Tensor] = {}
        self._is_known = False
        self._is_resumed = False
        self._pulled: dict[int, Tensor] = {}

    # ---- what it does ---------------------------------------------------------------------------

    def act_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Take the proximal step of L2-SP, or of L2 in the head."""
        start = self._pulled.get(id(weight))
        if start is not None:
            shrink_towards_(weight, start, learning_rate * self.strength)
        elif self.head_strength:
            shrink_(weight, learning_rate * self.head_strength)

    def told(self, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """The penalty, and how far the weights have gone from their start."""
        kept = [weight for weight in weights if id(weight) in self._pulled]
        new = [weight for weight in weights if id(weight) not in self._pulled]
        penalty = l2_penalty(new, self.head_strength)
        if not kept:
            return {"penalty": penalty}
        starts = [self._pulled[id(weight)] for weight in kept]
        pull = start_penalty(kept, starts, self.strength)
        lengths = l2_penalty(starts, self.strength).clamp(min=_TINY)
        distance = (pull / lengths).sqrt()
        return {"penalty": pull + penalty.to(pull.device), "distance": distance}

    # ---- where it pulls -------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the weights as they are for their start, unless training goes on."""
        if trainer.global_step == 0 and not self._is_resumed:
            self._starts = {}
        elif not self._is_known:
            rank_zero_warn(
                "RegularizeToStart does not know where training began, because the checkpoint was "
                "saved without it; the weights of the checkpoint take the place of the start.",
                category=StableLightningWarning,
            )
        self._is_known, self._is_resumed = True, False
        super().on_train_start(trainer, pl_module)

    def weights_of(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Those that weight decay is meant for; the start is remembered of all but the head's."""
        weights = list(super().weights_of(model))
        if not weights:
            return weights
        new = {id(p) for module in self._new(model) for p in module.parameters()}
        names = {id(p): name.replace(_COMPILED, "") for name, p in model.named_parameters()}
        self._pulled = {}
        for weight in weights:
            if id(weight) in new:
                continue
            known = self._starts.get(names[id(weight)])
            if known is None or known.shape != weight.shape:
                known = weight.detach().clone()
            # A checkpoint gives it on the host; there is one copy, which is also the state.
            known = known.to(device=weight.device, dtype=weight.dtype)
            self._starts[names[id(weight)]] = self._pulled[id(weight)] = known
        return weights

    def _new(self, model: nn.Module) -> list[nn.Module]:
        if self.head is None:
            return find_heads(model)
        modules = {name.replace(_COMPILED, ""): m for name, m in model.named_modules() if name}
        for name in self.head:
            if name not in modules:
                near = get_close_matches(name, modules, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else "[] is for none."
                raise RecipeError(
                    f"head must name modules of {type(model).__name__}, got {name!r}; {hint}"
                )
        return [modules[name] for name in self.head]

    def leave(self) -> None:
        """Leave the optimizers as they were; the start stays, for a checkpoint."""
        super().leave()
        self._pulled = {}

    # ---- what a checkpoint keeps ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The start of every weight that is pulled, by name."""
        return {"starts": dict(self._starts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the same start."""
        if self.goes_on:
            self._starts = dict(state_dict["starts"])
            self._is_known = self._is_resumed = True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
