"""Penalties on the size of weights, and max-norm, applied right after each optimizer's step."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from stablelightning.callbacks.after_step import RegularizeWeights
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.functional.regularize import (
    elastic_penalty,
    l1_penalty,
    l2_penalty,
    max_norm_,
    shrink_,
    soft_threshold_,
    unit_norms,
)
from stablelightning.model.unit_weights import UnitWeight, unit_weights
from stablelightning.words import some

#: Names of weights in one warning.
_NAMED = 4
#: A unit this close to the bound is at it: scaling to the bound rounds.
_AT_THE_BOUND = 1 - 1e-3


class RegularizeL1(RegularizeWeights):
    r"""L1 by its proximal step: weights that the loss does not need become exactly zero.

    After each step every weight moves towards zero by ``strength`` times the learning rate of its
    group, and stops there. The gradient never sees the penalty: as a term of the loss it would push
    weights across zero and back, none would rest there, and an adaptive optimizer would divide it
    by the size of the gradient. Biases, norms and PReLU slopes are left alone
    (:func:`~stablelightning.model.groups.decayed_parameters`).

    Logged: ``regularize/penalty`` (:math:`\lambda \sum |w|`) and ``regularize/zeros``, the share of
    weights that are exactly zero.

    Args:
        strength: the factor :math:`\lambda` > 0. With SGD in units of the gradient: a weight stays
            at zero while the loss's gradient there is smaller. Adam and its kin take steps of about
            the learning rate whatever the gradient, so that 0.01 to 0.1 is what the signs of
            successive gradients must agree by.

    Raises:
        RecipeError: ``strength`` is not positive; the strategy shards the weights.

    Source:
        Tibshirani 1996, JRSS B 58(1); Parikh, Boyd 2014, Proximal Algorithms, section 4.2 (the
        proximal gradient step); Loshchilov, Hutter 2019, arXiv:1711.05101 (why decoupled).

    Example:
        >>> RegularizeL1(strength=0.02).strength
        0.02
    """

    def __init__(self, strength: float = 1e-2) -> None:
        _check_positive("strength", strength, remedy="to stop the penalty, remove RegularizeL1")
        super().__init__()
        self.strength = strength

    def act_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Take the proximal step of L1."""
        soft_threshold_(weight, learning_rate * self.strength)

    def told(self, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """The penalty, and the share of exact zeros."""
        return {"penalty": l1_penalty(weights, self.strength), "zeros": _zeros(weights)}


class RegularizeL2(RegularizeWeights):
    r"""L2 by its proximal step: every weight is divided by one plus learning rate times strength.

    The same as the decoupled decay of AdamW to first order, for any optimizer. Through the gradient
    (``weight_decay`` of Adam, RMSprop and AdaGrad) an adaptive optimizer divides the penalty by the
    size of the gradient, and scales it away where gradients are large. Biases, norms and PReLU
    slopes are left alone, which an optimizer's ``weight_decay`` does not do by itself.

    Logged: ``regularize/penalty``, :math:`\frac{\lambda}{2} \sum w^2`.

    Args:
        strength: the factor :math:`\lambda` > 0; what AdamW calls ``weight_decay``.

    Raises:
        RecipeError: ``strength`` is not positive; the strategy shards the weights.

    Source:
        Krogh, Hertz 1991, NeurIPS; Loshchilov, Hutter 2019, arXiv:1711.05101; Parikh, Boyd 2014,
        Proximal Algorithms, section 6.1.1.

    Example:
        >>> RegularizeL2(strength=0.05).strength
        0.05
    """

    decays = True

    def __init__(self, strength: float = 1e-2) -> None:
        _check_positive("strength", strength, remedy="to stop the penalty, remove RegularizeL2")
        super().__init__()
        self.strength = strength

    def act_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Take the proximal step of L2."""
        shrink_(weight, learning_rate * self.strength)

    def told(self, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """The penalty."""
        return {"penalty": l2_penalty(weights, self.strength)}


class RegularizeElastic(RegularizeWeights):
    r"""The elastic net by its proximal step: exact zeros, and what stays is small and shared.

    Weights that do the same survive L1 by chance; with L2 beside it they are kept together.

    Logged: ``regularize/penalty`` (:math:`\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2`) and
    ``regularize/zeros``, the share of weights that are exactly zero.

    Args:
        l1_strength: the factor :math:`\lambda_1` >= 0, as in :class:`RegularizeL1`.
        l2_strength: the factor :math:`\lambda_2` >= 0, as in :class:`RegularizeL2`.

    Raises:
        RecipeError: a strength is negative, or both are 0; the strategy shards the weights.

    Source:
        Zou, Hastie 2005, JRSS B 67(2); Parikh, Boyd 2014, Proximal Algorithms, section 6.5.3.

    Example:
        >>> RegularizeElastic(l1_strength=0.02, l2_strength=0.02).l2_strength
        0.02
    """

    decays = True

    def __init__(self, l1_strength: float = 1e-2, *, l2_strength: float = 1e-2) -> None:
        for name, value in (("l1_strength", l1_strength), ("l2_strength", l2_strength)):
            if not _is_number(value) or not 0 <= value < math.inf:
                raise RecipeError(f"{name} must be >= 0, got {value!r}.")
        if l1_strength == l2_strength == 0:
            raise RecipeError(
                "l1_strength or l2_strength must be > 0, got 0 for both; to stop the penalty, "
                "remove RegularizeElastic."
            )
        super().__init__()
        self.l1_strength = l1_strength
        self.l2_strength = l2_strength

    def act_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Take the proximal step of both, which is that of L1, then that of L2."""
        soft_threshold_(weight, learning_rate * self.l1_strength)
        shrink_(weight, learning_rate * self.l2_strength)

    def told(self, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """The penalty, and the share of exact zeros."""
        penalty = elastic_penalty(
            weights, l1_strength=self.l1_strength, l2_strength=self.l2_strength
        )
        return {"penalty": penalty, "zeros": _zeros(weights)}


class LimitWeightNorm(RegularizeWeights):
    """Max-norm: after each step, no unit's incoming weights are longer than ``max_norm``.

    A unit is a row of a linear, attention or recurrent layer, an output channel of a convolution
    (transposed and grouped ones included). Shorter units are not touched, to the bit. It lets high
    learning rates and dropout explore without weights that grow for ever. Embeddings, biases and
    norms are left alone, and so are weights behind weight or spectral normalization.

    Logged: ``regularize/limited``, the share of units that are at the bound, and
    ``regularize/largest_norm``.

    Args:
        max_norm: the largest L2 norm of a unit's incoming weights, > 0; 3 to 4 is usual.

    Raises:
        RecipeError: ``max_norm`` is not positive; the strategy shards the weights.

    Source:
        Srebro, Rennie, Jaakkola 2004, NeurIPS; Hinton et al. 2012, arXiv:1207.0580; Srivastava et
        al. 2014, Dropout, JMLR 15, section 5.1.

    Example:
        >>> LimitWeightNorm(max_norm=4.0).max_norm
        4.0
    """

    needs_learning_rate = False

    def __init__(self, max_norm: float = 3.0) -> None:
        _check_positive("max_norm", max_norm, remedy="to stop limiting, remove LimitWeightNorm")
        super().__init__()
        self.max_norm = max_norm
        self._units: dict[int, UnitWeight] = {}

    def weights_of(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Those whose slices are what flows into one unit."""
        units, left = unit_weights(model)
        if left:
            rank_zero_warn(
                f"LimitWeightNorm leaves {some(left, _NAMED)} alone: a parametrization "
                "makes the weight from it, and decides its norm.",
                category=StableLightningWarning,
            )
        self._units = {id(unit.parameter): unit for unit in units}
        return [unit.parameter for unit in units]

    def act_(self, weight: nn.Parameter, learning_rate: float | Tensor) -> None:
        """Shorten the units that are too long."""
        split, axes = self._units[id(weight)].split()
        max_norm_(split, self.max_norm, unit_axes=axes)

    def told(self, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """How many units are at the bound, and the largest norm."""
        norms = []
        for weight in weights:
            split, axes = self._units[id(weight)].split()
            norms.append(unit_norms(split, unit_axes=axes).flatten().float())
        every = torch.cat(norms)
        limited = (every >= self.max_norm * _AT_THE_BOUND).float().mean()
        return {"limited": limited, "largest_norm": every.max()}

    def leave(self) -> None:
        """Leave the optimizers as they were."""
        super().leave()
        self._units = {}


def _zeros(weights: Sequence[Tensor]) -> Tensor:
    zeros = torch.stack([(weight == 0).sum() for weight in weights]).sum()
    return zeros / max(sum(weight.numel() for weight in weights), 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_positive(name: str, value: Any, *, remedy: str) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise RecipeError(f"{name} must be > 0, got {value!r}; {remedy}.")
