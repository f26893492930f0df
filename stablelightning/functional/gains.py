"""The gain of any scalar function: what weights must make up for, forward and backward."""

import math

from stablelightning.errors import ModelError
from stablelightning.functional.quadrature import (
    Panels,
    Scalar,
    derivative,
    gaussian_expectation,
    resolve,
)

__all__ = ["backward_gain", "forward_gain", "gaussian_expectation", "second_moment"]


def forward_gain(function: Scalar) -> float:
    """The factor by which weights make up for what a function does to the signal.

    With ``std = gain / sqrt(fan_in)`` the mean square of the pre-activations stays 1 from one layer
    to the next.

    Args:
        function: elementwise and deterministic; takes float64.

    Returns:
        ``1 / sqrt(E[f(z)^2])`` for standard normal ``z``, > 0.

    Raises:
        ModelError: the function is not elementwise, is zero, or has no finite mean square.

    Source:
        He et al. 2015, arXiv:1502.01852, for ReLU; the expectation holds for any function.

    Example:
        >>> import torch
        >>> round(forward_gain(torch.relu), 9), round(forward_gain(torch.nn.functional.selu), 6)
        (1.414213562, 1.0)
    """
    return _gain(second_moment(function), "f(z)^2")


def backward_gain(function: Scalar) -> float:
    """The factor by which weights make up for what a function's slope does to the gradient.

    Args:
        function: elementwise and deterministic; takes float64. Its derivative is autograd's, so
            that a function with a backward pass of its own is taken at its word.

    Returns:
        ``1 / sqrt(E[f'(z)^2])`` for standard normal ``z``, > 0.

    Raises:
        ModelError: the function is not elementwise, flat, or its slope has no finite mean square.

    Source:
        Derivation: the backward pass multiplies by ``f'``; see He et al. 2015, arXiv:1502.01852.

    Example:
        >>> import torch
        >>> round(backward_gain(torch.tanh), 4)
        1.4674
    """
    return _gain(second_moment(lambda x: derivative(function, x), panels=resolve(function)), "f'^2")


def second_moment(function: Scalar, *, panels: Panels | None = None) -> float:
    """``E[f(z)^2]`` for standard normal ``z``.

    Args:
        function: elementwise; takes float64.
        panels: where it is smooth; found if not given.

    Example:
        >>> import torch
        >>> round(second_moment(torch.relu), 9)
        0.5
    """
    return gaussian_expectation(lambda x: function(x).square(), panels=panels or resolve(function))


def _gain(moment: float, what: str) -> float:
    if not (math.isfinite(moment) and moment > 0):
        raise ModelError(
            f"a gain needs a finite E[{what}] above 0, got {moment:g}; this function passes "
            "nothing on, or grows without bound."
        )
    return 1 / math.sqrt(moment)
