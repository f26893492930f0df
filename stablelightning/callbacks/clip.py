"""How gradients are made smaller: one callback for each idea, over one base."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer

from stablelightning.callbacks.batches import inputs_and_target
from stablelightning.callbacks.clip_base import Account, ClipGradients
from stablelightning.callbacks.gradients import Gradients
from stablelightning.callbacks.steps import unobserved
from stablelightning.errors import RecipeError
from stablelightning.functional.clip import (
    ADAPTIVE_EPSILON,
    check_norm_type,
    check_threshold,
    clip_by_adaptive_norm_,
    clip_by_global_norm_,
    clip_by_value_,
    scale_to_unit_norm_,
    standardize_,
    whole,
)
from stablelightning.model.activity import followed_layers
from stablelightning.model.clip import BOUNDS, FIRST_STEPS, MULTIPLE, AutoThreshold, check_auto

__all__ = [
    "ClipGradientAdaptive",
    "ClipGradientNorm",
    "ClipGradientValue",
    "ClipGradients",
    "NormalizeGradients",
]

#: Layers whose weights count their units, the outputs, in the second dimension.
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ClipGradientNorm(ClipGradients):
    """Clip each optimizer's gradients by their joint norm, after unscaling and before the step.

    The direction of the step stays, its length is bounded: no single batch can throw the weights
    far. With ``max_norm="auto"`` the threshold is ``multiple`` times the mean of the first
    ``steps`` norms, within ``bounds``; until then the upper bound is the threshold, so that an
    explosion among the first steps is clipped, too. What is not finite counts for nothing. With
    ``percentile`` the threshold then follows that percentile of the last one to two thousand norms,
    within ``bounds``. Where layers are unfrozen it is chosen anew, with their gradients.

    A gradient that is not finite is left as it is, and so are all others of that step. FSDP and
    tensor-parallel models are clipped by the norm of all shards; under FSDP, whose own clipping is
    used, a gradient that is not finite makes all of that step so.

    Args:
        max_norm: largest joint norm, in gradient units, > 0; or ``"auto"``.
        norm_type: the p of the norm, >= 1; ``math.inf`` for the largest absolute value.
        steps: how many finite norms are measured for ``"auto"``, >= 1.
        multiple: of their mean that becomes the threshold, > 0.
        bounds: the least and the largest threshold of ``"auto"``, > 0.
        percentile: that ``"auto"`` follows, in (0, 100); ``None`` keeps the threshold.

    Attributes:
        thresholds: of each optimizer, now.
        records: how often each was clipped, as :class:`~stablelightning.model.clip.ClipRecord`.

    Raises:
        RecipeError: a setting is out of its range; something else clips as well; the strategy keeps
            gradients to itself.

    Source:
        Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063 (the norm, and the mean as a measure);
        Seetharaman, Wichern, Pardo, Le Roux 2020, arXiv:2007.14469 (a percentile).

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> clip = ClipGradientNorm(steps=10)
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        ...     enable_checkpointing=False, enable_model_summary=False, callbacks=[clip],
        ... )
        >>> trainer.fit(BoringModel())
        >>> [1.0 <= threshold <= 5.0 for threshold in clip.thresholds], clip.records[0].steps
        ([True], 64)
    """

    _takes_shards = True
    curve = "joint norm of the gradients"

    def __init__(
        self,
        max_norm: float | Literal["auto"] = "auto",
        *,
        norm_type: float = 2.0,
        steps: int = FIRST_STEPS,
        multiple: float = MULTIPLE,
        bounds: tuple[float, float] = BOUNDS,
        percentile: float | None = None,
    ) -> None:
        super().__init__()
        _check_max_norm(max_norm, percentile)
        check_norm_type(norm_type)
        check_auto(steps, multiple, bounds, percentile)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.steps = steps
        self.multiple = multiple
        self.bounds = bounds
        self.percentile = percentile
        self._logged_norm = float(norm_type)

    def new_account(self) -> Account:
        """The threshold, or what will choose it."""
        if self.max_norm != "auto":
            return Account(self.max_norm)
        auto = AutoThreshold(
            steps=self.steps,
            multiple=self.multiple,
            bounds=self.bounds,
            percentile=self.percentile,
        )
        return Account(auto.value, auto)

    def clip_(self, gradients: Gradients, optimizer: Optimizer, bound: float) -> Tensor:
        """Scale all by one factor."""
        norm = whole(gradients.norm(self._logged_norm))
        clip_by_global_norm_(gradients.tensors, bound, norm_type=self._logged_norm, total_norm=norm)
        return norm

    def clip_shards_(self, trainer: L.Trainer, gradients: Gradients, bound: float) -> Tensor:
        """Let FSDP clip, which alone knows which shards are whole."""
        if gradients.scale is not None:
            raise RecipeError(
                "ClipGradientNorm needs unscaled gradients under FSDP, and a fused optimizer "
                "unscales them within its step; set fused=False, or precision='bf16-mixed'."
            )
        root: Any = trainer.strategy.model
        norm: Tensor = root.clip_grad_norm_(bound, norm_type=self._logged_norm)
        return norm


class ClipGradientValue(ClipGradients):
    """Cut every entry of the gradients off at ``-max_value`` and ``max_value``.

    The direction of the step changes: large entries lose, small ones keep. Where one exploding
    weight must not shrink the step of all others, that is wanted; in general prefer
    :class:`ClipGradientNorm`. An infinite entry is left as it is.

    Args:
        max_value: largest absolute value of an entry, in gradient units; > 0.

    Attributes:
        records: how often each optimizer's gradients were clipped.

    Raises:
        RecipeError: a setting is out of its range; something else clips as well; the gradients lie
            in shards.

    Source:
        Mikolov 2012, Statistical language models based on neural networks, section 3.2.2.

    Example:
        >>> ClipGradientValue(0.5).max_value
        0.5
    """

    curve = "largest entry of the gradients"

    def __init__(self, max_value: float = 1.0) -> None:
        super().__init__()
        check_threshold("max_value", max_value)
        self.max_value = max_value

    def new_account(self) -> Account:
        """The bound of an entry."""
        return Account(self.max_value)

    def clip_(self, gradients: Gradients, optimizer: Optimizer, bound: float) -> Tensor:
        """Clamp all."""
        return clip_by_value_(gradients.tensors, bound)


class ClipGradientAdaptive(ClipGradients):
    """Bound the gradient of every unit by a share of the norm of the unit's own weights.

    What a step may change is measured by what is there: a unit with small weights may move little,
    however the loss is scaled. Made for networks without batch norm. A unit is an output neuron or
    channel; of a vector (biases, gains) all entries are one unit. ``clip/fraction`` is the share of
    steps at which any unit was clipped.

    Args:
        clipping: largest norm of a unit's gradient as a share of the norm of its weights, > 0;
            0.01 for large batches, up to 0.16 for small ones.
        epsilon: the least that a unit's weights count for, > 0; units that start at zero move by
            it.
        exclude: names of modules whose gradients are left alone, with all that they hold.
            ``None``: the linear layers that give the model's output, as in the paper; ``[]``: none.

    Attributes:
        records: how often each optimizer's gradients were clipped.

    Raises:
        RecipeError: a setting is out of its range; something else clips as well; the gradients lie
            in shards.

    Source:
        Brock, De, Smith, Simonyan 2021, arXiv:2102.06171.

    Example:
        >>> ClipGradientAdaptive(0.05, exclude=["head"]).exclude
        ['head']
    """

    curve = "share of the units that were clipped"

    def __init__(
        self,
        clipping: float = 0.01,
        *,
        epsilon: float = ADAPTIVE_EPSILON,
        exclude: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_threshold("clipping", clipping)
        check_threshold("epsilon", epsilon)
        if isinstance(exclude, str):
            raise RecipeError(f"exclude must be a list of module names, got {exclude!r}.")
        self.clipping = clipping
        self.epsilon = epsilon
        self.exclude = exclude
        self._forget_model()

    def _forget_model(self) -> None:
        self._left: set[int] | None = None  # identities of parameters that are not clipped
        self._second: set[int] = set()  # and of those whose units are in the second dimension
        self._units = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Find the head, once."""
        if self._left is not None:
            return
        names = self.exclude
        if names is None:
            names = _output_layers(trainer, pl_module, batch)
        modules = dict(pl_module.named_modules())
        for name in names:
            if name not in modules:
                raise RecipeError(
                    f"exclude must name modules of {type(pl_module).__name__}, got {name!r}; "
                    f"its first ones are {', '.join(list(modules)[1:6]) or 'none'}."
                )
        self._left = {id(p) for name in names for p in modules[name].parameters()}
        self._second = {id(m.weight) for m in modules.values() if isinstance(m, _TRANSPOSED)}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._forget_model()

    def new_account(self) -> Account:
        """No unit is clipped in a step that is not."""
        return Account(0.0)

    def clip_(self, gradients: Gradients, optimizer: Optimizer, bound: float) -> Tensor:
        """Scale unit by unit."""
        left = self._left or set()
        kept = [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and id(p) not in left
        ]
        dims = [int(id(p) in self._second) for p in kept]
        clipped = clip_by_adaptive_norm_(
            [p.grad for p in kept],
            [p.detach() for p in kept],
            self.clipping,
            epsilon=self.epsilon,
            unit_dims=dims,
        )
        units = sum(p.shape[d] if p.ndim > 1 else 1 for p, d in zip(kept, dims, strict=True))
        return clipped / max(units, 1)


class NormalizeGradients(ClipGradients):
    """Bring the gradient of every tensor to unit norm, or to zero mean and unit variance.

    Every tensor then takes a step of the same size, however small or large its gradient is: layers
    that gradients hardly reach learn as fast as the others, and the learning rate alone decides how
    fast. It must fall in the end, for steps do not get smaller near a minimum. It has nothing to
    give to Adam, which normalizes by itself. ``clip/fraction`` is not logged.

    Args:
        standardize: take away the mean of each tensor's entries, and divide by their standard
            deviation, instead of dividing by their norm alone. The step is then no direction of
            descent in general.

    Raises:
        RecipeError: something else clips as well; the gradients lie in shards.

    Source:
        Yu, Huang, Lin, Salakhutdinov, Carbonell 2017, arXiv:1707.04822; Yong, Huang, Hua, Zhang
        2020, arXiv:2004.01461 (the mean).

    Example:
        >>> NormalizeGradients().standardize
        False
    """

    def __init__(self, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize

    def new_account(self) -> Account:
        """There is no bound."""
        return Account(math.inf)

    def clip_(self, gradients: Gradients, optimizer: Optimizer, bound: float) -> None:
        """Divide tensor by tensor."""
        rule = standardize_ if self.standardize else scale_to_unit_norm_
        rule(gradients.tensors)


def _check_max_norm(max_norm: Any, percentile: float | None) -> None:
    if max_norm == "auto":
        return
    if isinstance(max_norm, str):
        raise RecipeError(f"max_norm must be a number > 0 or auto, got {max_norm!r}.")
    check_threshold("max_norm", max_norm)
    if percentile is not None:
        raise RecipeError(
            f"percentile must go with max_norm: auto, got max_norm={max_norm}; remove one of them."
        )


def _output_layers(trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> list[str]:
    """The linear layers that give the output; where no forward can be watched, the last one."""
    try:
        inputs, _ = inputs_and_target(pl_module, batch)
        with unobserved(trainer, pl_module):
            roles = followed_layers(pl_module, inputs)
        found = [r.name for r in roles if r.is_output and isinstance(r.module, nn.Linear)]
        if found:
            return found
    except Exception:  # whatever a forward raises that is not meant to be called alone
        pass
    linear = [name for name, m in pl_module.named_modules() if isinstance(m, nn.Linear)]
    return linear[-1:]
