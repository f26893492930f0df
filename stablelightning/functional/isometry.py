"""How straight a function is for a signal of a given size, and the gain that keeps that size.

A deep stack is near an isometry where each layer is nearly linear. ReLU, leaky ReLU, GELU and SiLU
are exactly linear in mirrored pairs, ``f(z) - f(-z)``; SELU, ELU, Mish and tanh the more the
smaller the signal.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from stablelightning.errors import ModelError
from stablelightning.functional.quadrature import (
    Panels,
    Scalar,
    evaluate,
    gaussian_expectation,
    resolve,
)

#: Sizes that are tried, the largest that is straight enough is taken.
SIZES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
#: Of the mean square, what a whole stack may bend. Beyond it outputs of different inputs come
#: together and gradients scatter; below it nothing more is gained (measured at 30 to 100 layers).
_MOST_BENT = 0.1
#: A mirrored pair that hands on less than this share of the function hands on nothing.
_NOTHING = 1e-12
#: What rounding leaves between the rows of an orthogonal matrix, in half precision too.
_ORTHOGONAL = 1e-2


def mirrored(function: Scalar) -> Scalar:
    """What a pair of units with opposite weights hands on: ``f(z) - f(-z)``.

    Example:
        >>> mirrored(torch.relu)(torch.tensor([-2.0, 3.0]))
        tensor([-2.,  3.])
    """
    return lambda z: function(z) - function(-z)


def nonlinear_share(function: Scalar, size: float = 1.0) -> float:
    """The share of a function's mean square that no straight line through 0 explains.

    Args:
        function: elementwise; takes float64.
        size: standard deviation of its argument, > 0.

    Returns:
        ``1 - E[z f(s z)]^2 / E[f(s z)^2]`` for standard normal ``z``, in [0, 1]; 1 for a zero.

    Example:
        >>> round(nonlinear_share(torch.tanh), 3), round(nonlinear_share(torch.tanh, 0.25), 4)
        (0.07, 0.0019)
    """
    square, along = _moments(function, size)
    return max(0.0, 1 - along**2 / square) if square > 0 else 1.0


def isometric_gain(function: Scalar, size: float = 1.0) -> float:
    """``1 / sqrt(E[f(s z)^2])``: times ``s``, what keeps a signal of size ``s`` over depth.

    Args:
        function: elementwise; takes float64.
        size: standard deviation of its argument, > 0.

    Raises:
        ModelError: the function is zero, or not finite.

    Example:
        >>> isometric_gain(lambda z: 2 * z, 0.25)
        2.0
    """
    square, _ = _moments(function, size)
    if not (math.isfinite(square) and square > 0):
        raise ModelError(
            f"an isometry needs a function that hands something on, got E[f^2] {square}."
        )
    return round(1 / math.sqrt(square), 12)


def working_size(functions: Iterable[Scalar]) -> float:
    """The largest size at which a whole stack bends less than a tenth of its signal.

    Args:
        functions: of the stack, one for each layer; for mirrored weights their :func:`mirrored`.

    Returns:
        One of 1, 1/2, 1/4, 1/8 and 1/16; the last where none is straight enough.

    Example:
        >>> working_size([torch.tanh] * 2), working_size([torch.tanh] * 50)
        (0.5, 0.25)
    """
    different: dict[int, tuple[Scalar, int]] = {}
    for function in functions:
        different[id(function)] = function, different.get(id(function), (function, 0))[1] + 1
    for size in SIZES:
        bent = sum(count * nonlinear_share(f, size) for f, count in different.values())
        if bent <= _MOST_BENT:
            return size
    return SIZES[-1]


def is_odd(function: Scalar) -> bool:
    """Whether ``f(-z) = -f(z)``: a mirrored unit would be a copy of its partner.

    Example:
        >>> is_odd(torch.tanh), is_odd(torch.sigmoid)
        (True, False)
    """
    z = torch.linspace(0.1, 4.0, 40, dtype=torch.float64, device="cpu")
    up, down = evaluate(function, z), evaluate(function, -z)
    return bool((up + down).abs().max() <= _NOTHING**0.5 * up.abs().max())


def in_mirrored_halves(weight: Tensor) -> bool:
    """Whether the second half of the units of a weight is the first with opposite signs.

    Args:
        weight: units in the first dimension.

    Example:
        >>> in_mirrored_halves(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
        True
    """
    if weight.ndim < 2 or len(weight) % 2 or not len(weight):
        return False
    first, second = weight.detach().chunk(2)
    return torch.equal(first, -second) and bool(first.any())


def is_isometry(weight: Tensor) -> bool:
    """Whether a weight is a multiple of an orthogonal one, or made of mirrored halves of such.

    No training leaves this so: who finds it finds a weight that was just drawn.

    Args:
        weight: units in the first dimension.

    Example:
        >>> is_isometry(torch.eye(3) / 2), is_isometry(torch.ones(3, 3))
        (True, False)
    """
    if weight.ndim < 2 or not weight.numel():
        return False
    rows = weight.detach().flatten(1).double()
    if in_mirrored_halves(weight):
        rows = rows[: len(rows) // 2]
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    size = gram.diagonal().mean()
    if not (torch.isfinite(size) and size > 0):
        return False
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return bool((gram / size - unit).abs().max() < _ORTHOGONAL)


def is_even(function: Scalar) -> bool:
    """Whether ``f(-z) = f(z)``: a mirrored pair would hand nothing on.

    Example:
        >>> is_even(torch.abs), is_even(torch.relu)
        (True, False)
    """
    z = torch.linspace(0.1, 4.0, 40, dtype=torch.float64, device="cpu")
    up, down = evaluate(function, z), evaluate(function, -z)
    return bool((up - down).abs().max() <= _NOTHING**0.5 * up.abs().max())


def _moments(function: Scalar, size: float) -> tuple[float, float]:
    """``E[f(s z)^2]`` and ``E[z f(s z)]``."""

    def scaled(z: Tensor) -> Tensor:
        return function(size * z)

    panels: Panels = resolve(scaled)
    square = gaussian_expectation(lambda z: scaled(z).square(), panels=panels)
    return square, gaussian_expectation(lambda z: z * scaled(z), panels=panels)
