"""The two activations that torch does not have: the scaled sigmoid, and maxout."""

import math
from functools import cache

import torch
from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError

#: The largest normal deviate that counts: beyond it the density is below 1e-22.
_WIDEST_DEVIATE = 10.0

#: Nodes of the trapezoid rule, which is exact to rounding for a smooth density that dies out.
_NODES = 4001


def scaled_sigmoid(x: Tensor) -> Tensor:
    """The sigmoid as a hidden unit wants it: ``4 * sigmoid(x) - 2``.

    Through the origin with slope 1, in (-2, 2). The sigmoid itself has slope 1/4 and mean 1/2: each
    layer of it divides gradients by at least four, and what it passes on is never centred.

    Args:
        x: any shape.

    Returns:
        A tensor of the shape of ``x``.

    Source:
        It equals ``2 * tanh(x / 2)``; Glorot, Bengio 2010, section 3 (why the sigmoid's own slope
        and mean stop deep networks).

    Example:
        >>> x = torch.tensor([-2.0, 0.0, 2.0])
        >>> torch.allclose(scaled_sigmoid(x), 2 * torch.tanh(x / 2))
        True
    """
    return 4 * torch.sigmoid(x) - 2


def maxout(x: Tensor, pieces: int, *, dim: int = -1) -> Tensor:
    """The largest of each ``pieces`` neighbours along ``dim``.

    Args:
        x: any shape whose ``dim`` is a multiple of ``pieces``; the pieces of one unit lie side by
            side.
        pieces: linear pieces of a unit, >= 2.
        dim: the dimension of the units.

    Returns:
        A tensor whose ``dim`` is shorter by the factor ``pieces``.

    Raises:
        RecipeError: ``pieces`` is below 2, or does not divide the dimension.

    Source:
        Goodfellow et al. 2013, arXiv:1302.4389, section 3.

    Example:
        >>> maxout(torch.tensor([1.0, -1.0, 2.0, 5.0]), 2)
        tensor([1., 5.])
    """
    check_pieces(pieces)
    if x.shape[dim] % pieces:
        raise RecipeError(
            f"maxout needs a multiple of pieces={pieces} along dimension {dim}, got "
            f"{x.shape[dim]}; give the layer before it out_features * pieces outputs."
        )
    axis = dim % x.ndim
    largest: Tensor = x.unflatten(axis, (-1, pieces)).amax(axis + 1)
    return largest


def check_pieces(pieces: int) -> None:
    """Raise unless ``pieces`` is a whole number >= 2.

    Raises:
        RecipeError: it is not.
    """
    check_whole(
        "pieces",
        pieces,
        least=2,
        hint="2 doubles the parameters of a layer, and one piece is a plain layer",
    )


@cache
def maxout_gain(pieces: int) -> float:
    """The gain that keeps the mean square through a maxout layer with standard normal pieces.

    ``1 / sqrt(E[max(z_1, ..., z_k)^2])``: for two pieces exactly 1, because the squares of the
    larger and the smaller of two add up to 2 on average, and the two are alike by symmetry.

    Args:
        pieces: independent pieces of a unit, >= 2.

    Returns:
        The factor on a standard deviation of ``1 / sqrt(fan_in)``.

    Raises:
        RecipeError: ``pieces`` is below 2.

    Source:
        The density of the largest of k normal deviates, ``k phi(z) Phi(z)^(k-1)``, integrated by
        the trapezoid rule.

    Example:
        >>> round(maxout_gain(2), 9), round(maxout_gain(4), 4)
        (1.0, 0.8029)
    """
    check_pieces(pieces)
    z = torch.linspace(-_WIDEST_DEVIATE, _WIDEST_DEVIATE, _NODES, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    largest = pieces * density * torch.special.ndtr(z) ** (pieces - 1)
    return 1 / math.sqrt(float(torch.trapezoid(z.square() * largest, z)))
