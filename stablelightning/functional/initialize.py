"""Drawing weights so that the signal keeps its size: Glorot, He, LeCun, LSUV, Fixup.

Every function with a trailing ``_`` writes in place, draws from torch's default generator of the
weight's device, and returns what it wrote. Orthogonal weights are in
:mod:`stablelightning.functional.orthogonal`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stablelightning.errors import RecipeError

#: Fills a tensor in place with values of mean 0 and a given standard deviation.
Draw = Callable[[Tensor, float], Tensor]

#: Standard deviation of a standard normal variable that is cut off at -2 and 2.
_TRUNCATED_STD = 0.87962566103423978
_CUT_OFF = 2.0
#: Outputs smaller than this are no signal; scaling to unit size would only magnify rounding.
_NO_SIGNAL = 1e-20


@dataclass(frozen=True)
class Layout:
    """How a weight connects inputs with outputs, which its shape alone does not say.

    Args:
        groups: of a convolution; each output reads the inputs of its own group only.
        transposed: the weight's first axis counts inputs, as in ``nn.ConvTranspose2d``.
        stride: along each axis of the kernel; empty is 1 everywhere.
    """

    groups: int = 1
    transposed: bool = False
    stride: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """The layout of a convolution of any kind; the plain one of everything else.

        Example:
            >>> Layout.of(nn.Conv2d(4, 8, 3, groups=2)).groups
            2
        """
        if not isinstance(module, nn.modules.conv._ConvNd):
            return cls()
        return cls(module.groups, module.transposed, tuple(module.stride))

    def fans(self, weight: Tensor) -> "Fans":
        """Count what an output reads and what an input feeds; see :class:`Fans`."""
        first, second = weight.shape[0] / self.groups, weight.shape[1]
        kernel = math.prod(weight.shape[2:])
        passes = kernel / math.prod(self.stride)
        # (out, in / groups, ...) or, transposed, (in, out / groups, ...): the side that is spread
        # over a finer grid by the stride is met by only some of the kernel's entries.
        if self.transposed:
            return Fans(first * passes, float(second * kernel))
        return Fans(float(second * kernel), first * passes)


@dataclass(frozen=True)
class Fans:
    """How many inputs a unit reads, and how many outputs it feeds, on average.

    Padding is not counted: with it, units at the border read less. A stride divides the number of
    outputs that one input feeds (of a transposed convolution, of inputs that one output reads),
    and groups divide both; torch's own count knows neither.

    Args:
        fan_in: keeps the signal's size: ``std = gain / sqrt(fan_in)``.
        fan_out: keeps the gradient's size.

    Example:
        >>> Layout().fans(torch.empty(8, 4, 3, 3))
        Fans(fan_in=36.0, fan_out=72.0)
        >>> Layout(groups=2, transposed=True, stride=(2, 2)).fans(torch.empty(8, 4, 4, 4))
        Fans(fan_in=16.0, fan_out=64.0)
    """

    fan_in: float
    fan_out: float

    @property
    def average(self) -> float:
        """The mean of both, Glorot's compromise."""
        return (self.fan_in + self.fan_out) / 2


# ---- what is drawn ----------------------------------------------------------------------------


@torch.no_grad()
def normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with normal values of mean 0.

    Args:
        tensor: any shape; changed in place.
        std: standard deviation, >= 0.

    Example:
        >>> normal_(torch.empty(2), 0.0)
        tensor([0., 0.])
    """
    return _drawn(tensor, lambda values: nn.init.normal_(values, 0.0, std))


@torch.no_grad()
def uniform_(tensor: Tensor, std: float) -> Tensor:
    """Fill with uniform values of mean 0, between ``-sqrt(3) std`` and ``sqrt(3) std``.

    Args:
        tensor: any shape; changed in place.
        std: standard deviation, >= 0.

    Example:
        >>> bool(uniform_(torch.empty(99), 1.0).abs().max() <= 3**0.5)
        True
    """
    bound = math.sqrt(3) * std
    return _drawn(tensor, lambda values: nn.init.uniform_(values, -bound, bound))


@torch.no_grad()
def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with normal values that are cut off at two standard deviations, widened to make up.

    Args:
        tensor: any shape; changed in place.
        std: standard deviation of what is drawn, after the cut, >= 0.

    Example:
        >>> bool(truncated_normal_(torch.empty(99), 1.0).abs().max() <= 2 / 0.8796)
        True
    """
    if std == 0:
        return tensor.zero_()
    wide = std / _TRUNCATED_STD
    end = _CUT_OFF * wide
    return _drawn(tensor, lambda values: nn.init.trunc_normal_(values, 0.0, wide, -end, end))


def _drawn(tensor: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """Drawn in float32 at least: uniform bf16 numbers come from 256 values, off centre."""
    if tensor.dtype in (torch.float32, torch.float64):
        return fill(tensor)
    return tensor.copy_(fill(torch.empty_like(tensor, dtype=torch.float32)))


# ---- by fans ----------------------------------------------------------------------------------


def scaled_(weight: Tensor, fan: float, *, gain: float = 1.0, draw: Draw = normal_) -> Tensor:
    """Draw weights of ``std = gain / sqrt(fan)``: what Glorot, He and LeCun have in common.

    Args:
        weight: any shape; changed in place.
        fan: number of terms that are summed, > 0; see :class:`Fans`.
        gain: what the function after it takes away, >= 0; see
            :func:`~stablelightning.functional.gains.forward_gain`.
        draw: :func:`normal_`, :func:`uniform_` or :func:`truncated_normal_`.

    Raises:
        RecipeError: ``fan`` or ``gain`` is out of its range.

    Example:
        >>> scaled_(torch.empty(2, 2), 2, gain=0.0)
        tensor([[0., 0.],
                [0., 0.]])
    """
    if not fan > 0:
        raise RecipeError(f"fan must be > 0, got {fan}; count the inputs that a unit reads.")
    if not (gain >= 0 and math.isfinite(gain)):
        raise RecipeError(f"gain must be finite and >= 0, got {gain}; sqrt(2) is that of ReLU.")
    return draw(weight, gain / math.sqrt(fan))


def glorot_(
    weight: Tensor, *, fans: Fans | None = None, gain: float = 1.0, draw: Draw = uniform_
) -> Tensor:
    """Draw by the average of both fans, which keeps signal and gradient equally well.

    For tanh, sigmoid and linear outputs.

    Args:
        weight: ``(out, in, ...)``; changed in place.
        fans: of the layer; those of a plain weight of this shape if not given.
        gain: >= 0.
        draw: the distribution.

    Source:
        Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", equation 16.

    Example:
        >>> bool(glorot_(torch.empty(3, 5)).abs().max() <= (6 / 8) ** 0.5)
        True
    """
    return scaled_(weight, (fans or Layout().fans(weight)).average, gain=gain, draw=draw)


def he_(
    weight: Tensor,
    *,
    fans: Fans | None = None,
    gain: float = math.sqrt(2),
    draw: Draw = normal_,
) -> Tensor:
    """Draw by the fan in, with the gain of the function that follows.

    For the fan out, which keeps the gradient instead:
    ``scaled_(weight, fans.fan_out, gain=gain)``.

    Args:
        weight: ``(out, in, ...)``; changed in place.
        fans: of the layer; those of a plain weight of this shape if not given.
        gain: >= 0; the default is that of ReLU.
        draw: the distribution.

    Source:
        He et al. 2015, arXiv:1502.01852, equation 10.

    Example:
        >>> round(he_(torch.empty(200, 200)).std().item(), 2)
        0.1
    """
    return scaled_(weight, (fans or Layout().fans(weight)).fan_in, gain=gain, draw=draw)


def lecun_(weight: Tensor, *, fans: Fans | None = None, draw: Draw = normal_) -> Tensor:
    """Draw by the fan in, without a gain: what a self-normalizing function (SELU) asks for.

    Args:
        weight: ``(out, in, ...)``; changed in place.
        fans: of the layer; those of a plain weight of this shape if not given.
        draw: the distribution.

    Source:
        LeCun et al. 1998, "Efficient BackProp", section 4.6; for SELU Klambauer et al. 2017,
        arXiv:1706.02515.

    Example:
        >>> round(lecun_(torch.empty(400, 100)).std().item(), 2)
        0.1
    """
    return scaled_(weight, (fans or Layout().fans(weight)).fan_in, draw=draw)


# ---- by data ----------------------------------------------------------------------------------


@torch.no_grad()
def scale_to_size_(weight: Tensor, output: Tensor, *, size: float = 1.0) -> float:
    """One step of LSUV: scale a weight so that its layer's output gets a given root mean square.

    Layer-sequential unit variance: start from orthogonal weights, send a batch through, and scale
    layer after layer, in order of execution, each measured with the layers before it already
    scaled. :func:`stablelightning.initialize` with ``scheme="lsuv"`` does this.

    **In practice** the size is worth a search where a network will not move: begin small (0.1) and
    grow it by factors of two until the loss of the first hundred steps falls. Too small, and the
    gradients vanish: nothing moves. Too large, and the first steps throw the network about. Most
    networks train over a wide range in between; take the smallest size that moves.

    Args:
        weight: of a layer without bias, or with a bias of zero; changed in place.
        output: what the layer gave for a batch, any shape.
        size: root mean square that is wanted, > 0.

    Returns:
        The factor; 1 where there is no output to measure (all zero, or not finite).

    Raises:
        RecipeError: ``size`` is not positive.

    Source:
        Mishkin, Matas 2016, arXiv:1511.06422, algorithm 1.

    Example:
        >>> weight, x = torch.full((1, 2), 3.0), torch.ones(4, 2)
        >>> scale_to_size_(weight, x @ weight.T), weight
        (0.16666666666666666, tensor([[0.5000, 0.5000]]))
    """
    if not size > 0:
        raise RecipeError(
            f"size must be > 0, got {size}; 1 keeps the signal as large as its input."
        )
    measured = float(output.double().square().mean().sqrt()) if output.numel() else 0.0
    if not (math.isfinite(measured) and measured > _NO_SIGNAL):
        return 1.0
    weight.mul_(size / measured)
    return size / measured


# ---- by depth ---------------------------------------------------------------------------------


def fixup_factor(layers: int, *, branches: int) -> float:
    """The factor on all but the last weights of a residual branch without norm.

    Args:
        layers: weight layers in the branch, >= 1.
        branches: residual branches in the network, >= 1.

    Returns:
        ``branches ** (-1 / (2 layers - 2))``; 1 for a branch of one layer, which is zeroed anyway.

    Raises:
        RecipeError: a number is below 1.

    Source:
        Zhang, Dauphin, Ma 2019, arXiv:1901.09321, section 3.

    Example:
        >>> fixup_factor(2, branches=16)
        0.25
    """
    if layers < 1 or branches < 1:
        raise RecipeError(
            f"a residual branch has at least one layer, and a network with one at least one "
            f"branch; got {layers} layers and {branches} branches."
        )
    return 1.0 if layers == 1 else float(branches ** (-1 / (2 * layers - 2)))


@torch.no_grad()
def fixup_(weights: Sequence[Tensor], *, branches: int) -> None:
    """Scale the weights of a residual branch without norm by depth, and zero the last.

    Each branch then begins as the identity, and one step of SGD moves the network's output as far
    as that of a shallow one, however many branches there are.

    Args:
        weights: of the branch's layers in order, already drawn by :func:`he_`; changed in place.
        branches: residual branches in the network, >= 1.

    Raises:
        RecipeError: no weights, or no branches.

    Source:
        Zhang, Dauphin, Ma 2019, arXiv:1901.09321, section 3.

    Example:
        >>> first, last = torch.ones(1), torch.ones(1)
        >>> fixup_([first, last], branches=4)
        >>> first, last
        (tensor([0.5000]), tensor([0.]))
    """
    factor = fixup_factor(len(weights), branches=branches)
    for weight in weights[:-1]:
        weight.mul_(factor)
    weights[-1].zero_()
