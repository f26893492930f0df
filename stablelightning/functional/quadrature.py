"""Integrals of scalar functions over the normal distribution, exact at kinks and jumps.

Composite Gauss-Legendre sums in float64 on panels that are halved until the function *and* its
derivative are a polynomial on each of them. A kink or a jump is so closed in by bisection, wherever
it is; Gauss-Hermite nodes, which know nothing of kinks, err by 1e-4 on SELU and by 1e-2 on
hardtanh.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from stablelightning.errors import ModelError

#: An elementwise function of a tensor, such as ``torch.tanh``.
Scalar = Callable[[Tensor], Tensor]

#: Beyond it the normal density is below 1e-31: growth like exp(3|x|) is still integrated to 1e-8.
REACH = 12.0
FIRST_PANELS = 96  # a quarter wide: a bump must be narrower than 1/60 to hide between the nodes
NODES = 16
#: A panel is halved while the last Legendre coefficients exceed this share of the largest value.
_RESOLVED = 1e-11
#: A panel this narrow holds a kink or a jump; what it adds to an integral is below 1e-9.
_NARROWEST = 1e-12
#: How far inside a panel its ends are looked at, as a share of half its width.
_INSET = 1e-9
#: Beside an edge, how far away two values are compared, and by how much they differ at a jump.
_BESIDE, _JUMP = 1e-8, 1e-5
#: Halving stops where this many panels are unresolved at once: noise, not kinks.
_MOST_UNRESOLVED = 600
#: Two evaluations of one point that differ by more are not those of one elementwise function.
_SAME = 1e-6


@dataclass(frozen=True)
class Panels:
    """A scalar function resolved into smooth pieces.

    Args:
        edges: ``(P + 1,)`` ascending, in units of the argument; the function and its derivative are
            polynomials to eleven digits between two of them.
        kinks: ``(K,)`` places, to 1e-12, where the function or its derivative jumps.
    """

    edges: Tensor
    kinks: Tensor


def gaussian_expectation(function: Scalar, *, panels: Panels | None = None) -> float:
    """``E[f(z)]`` for standard normal ``z``.

    Args:
        function: elementwise; takes float64. May grow like ``exp(3|x|)``, not faster.
        panels: where it is smooth, from :func:`resolve` of this function or of one that it is made
            of; found if not given.

    Raises:
        ModelError: the function is not elementwise, or not finite where the signal is.

    Example:
        >>> round(gaussian_expectation(torch.relu), 9), round(1 / math.sqrt(2 * math.pi), 9)
        (0.39894228, 0.39894228)
    """
    nodes, weights = composite_nodes((panels or resolve(function)).edges)
    return float((evaluate(function, nodes) * weights * normal_density(nodes)).sum())


def derivative(function: Scalar, x: Tensor) -> Tensor:
    """The slope of an elementwise function at each ``x``, by autograd; 0 where it has no graph.

    Args:
        function: elementwise.
        x: any shape, floating point.

    Example:
        >>> derivative(torch.square, torch.tensor([1.0, 3.0]))
        tensor([2., 6.])
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        value = function(point.clone())  # some functions write into what they are given
        if not value.requires_grad:
            return torch.zeros_like(x)
        (slope,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
    return torch.zeros_like(x) if slope is None else slope.detach()


def resolve(function: Scalar, *, scale: float = 1.0) -> Panels:
    """Find the pieces on which a function and its derivative are smooth, and the kinks between.

    Panels start a quarter wide and are halved while a polynomial does not fit: around kinks and
    jumps down to 1e-12, in steep places as far as is needed.

    Args:
        function: elementwise and deterministic; takes float64.
        scale: the standard deviation of its argument, > 0; 12 of them are covered on either side.

    Raises:
        ModelError: the function is not elementwise and deterministic.

    Example:
        >>> resolve(lambda x: x.clamp(-0.3, 1.7)).kinks
        tensor([-0.3000,  1.7000], dtype=torch.float64)
    """
    places = _places()
    _check_elementwise(function, scale * REACH * places)
    edges = scale * torch.linspace(
        -REACH, REACH, FIRST_PANELS + 1, dtype=torch.float64, device="cpu"
    )
    narrowest = _NARROWEST * REACH * scale
    left, right = edges[:-1], edges[1:]
    done, kinks = [torch.stack([left, right], 1)[:0]], []
    largest = 0.0
    while len(left):
        middle, half = (left + right) / 2, (right - left) / 2
        x = middle[:, None] + half[:, None] * places
        tails, size = _unresolved(function, x, scale)
        largest = max(largest, size)
        open_ = tails > _RESOLVED * largest
        narrow = half <= narrowest
        kinks += [middle[open_ & narrow]]
        halve = open_ & ~narrow
        if int(halve.sum()) > _MOST_UNRESOLVED:
            halve = torch.zeros_like(halve)
        done.append(torch.stack([left, right], 1)[~halve])
        left, middle, right = left[halve], middle[halve], right[halve]
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
    every = torch.cat([torch.cat(done)[:, 0], edges[-1:]]).sort().values
    return Panels(every, _distinct([*kinks, _jumps(function, every, scale)]))


# ---- nodes ------------------------------------------------------------------------------------


def composite_nodes(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of all panels between ``edges`` (..., P + 1), flattened to (..., P * n)."""
    nodes, weights = _gauss_legendre(NODES)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, edges.diff(dim=-1) / 2
    x = middle[..., None] + half[..., None] * nodes
    return x.flatten(-2), (half[..., None] * weights).flatten(-2)


def normal_density(x: Tensor) -> Tensor:
    """The density of the standard normal distribution."""
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def evaluate(function: Scalar, x: Tensor) -> Tensor:
    """The values of a function in float64; what it writes in place stays with a copy."""
    with torch.no_grad():
        return function(x.clone()).detach().to(torch.float64)


@cache
def _gauss_legendre(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1], from the eigenvalues of the Jacobi matrix (Golub, Welsch)."""
    k = torch.arange(1, number, dtype=torch.float64, device="cpu")
    off = k / (4 * k * k - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return values, 2 * vectors[0].square()


@cache
def _places() -> Tensor:
    """The nodes and both ends of [-1, 1], from inside: a jump on an edge harms neither side."""
    nodes, _ = _gauss_legendre(NODES)
    ends = nodes.new_tensor([-1 + _INSET, 1 - _INSET])
    return torch.cat([nodes, ends])


@cache
def _misfit() -> Tensor:
    """``(nodes + 2, 5)``: from values at the places to what a polynomial misses.

    Three columns give the last Legendre coefficients, two how far the polynomial through the nodes
    is from the values at the ends: a kink between the outermost node and the end moves only those.
    """
    _, weights = _gauss_legendre(NODES)
    places = _places()
    rows = [torch.ones_like(places), places]
    for k in range(1, NODES - 1):
        rows.append(((2 * k + 1) * places * rows[k] - k * rows[k - 1]) / (k + 1))
    degrees = torch.arange(NODES, dtype=torch.float64, device="cpu")[:, None]
    legendre = torch.stack(rows)
    coefficients = legendre[:, :NODES] * weights * (2 * degrees + 1) / 2
    misfit = places.new_zeros(NODES + 2, 5)
    misfit[:NODES, :3] = coefficients[-3:].T
    misfit[:NODES, 3:] = -coefficients.T @ legendre[:, NODES:]
    misfit[NODES, 3] = misfit[NODES + 1, 4] = 1
    return misfit


# ---- resolving --------------------------------------------------------------------------------


def _unresolved(function: Scalar, x: Tensor, scale: float) -> tuple[Tensor, float]:
    """For each panel (row), what a polynomial misses; and the largest value seen, both weighted.

    Weighted by the root of the density, as what is integrated are squares: detail in the far tail
    is not worth a panel.
    """
    weight = torch.exp(-(x / scale).square() / 4)
    both = torch.stack([evaluate(function, x), scale * derivative(function, x)])
    both = torch.where(both.isfinite(), both * weight, 0.0)
    tails = (both @ _misfit()).abs().amax((0, 2))
    return tails, float(both.abs().max())


def _jumps(function: Scalar, edges: Tensor, scale: float) -> Tensor:
    """The edges at which the function or its slope jumps: most kinks are at 0, 1 or 3.

    What differs from one side to the other of a smooth function is halved with the distance; a jump
    stays.
    """
    wide = edges.diff() > 4 * _BESIDE * scale  # elsewhere a kink was closed in already
    edges = edges[1:-1][wide[1:] & wide[:-1]]
    differences = []
    for near in (_BESIDE * scale, 2 * _BESIDE * scale):
        sides = torch.stack([edges + near, edges - near])
        f, slope = evaluate(function, sides), scale * derivative(function, sides)
        differences.append(torch.stack([f[0] - f[1], slope[0] - slope[1]]))
    jump = (2 * differences[0] - differences[1]).abs().nan_to_num(0.0, 0.0)
    size = evaluate(function, edges).abs().clamp(min=1.0)
    return edges[(jump > _JUMP * size).any(0)]


def _distinct(found: list[Tensor]) -> Tensor:
    """Kinks in order, one for each; two panels that share an edge both see the kink on it."""
    kinks = (
        torch.cat(found).sort().values
        if found
        else torch.zeros(0, dtype=torch.float64, device="cpu")
    )
    if len(kinks) < 2:
        return kinks
    near = 10 * _NARROWEST * REACH
    fresh = torch.cat([torch.ones(1, dtype=torch.bool), kinks.diff() > near])
    return kinks[fresh]


def _check_elementwise(function: Scalar, x: Tensor) -> None:
    name = getattr(function, "__name__", type(function).__name__)
    rule = "a gain needs a deterministic elementwise function that takes float64"
    try:
        whole, part = evaluate(function, x), evaluate(function, x[: len(x) // 2])
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{rule}, and {name} failed on one ({reason}).") from error
    same = whole.shape == x.shape and torch.allclose(
        whole[: len(part)], part, rtol=_SAME, atol=_SAME, equal_nan=True
    )
    if not same:
        raise ModelError(
            f"{rule}, and {name} is none: the value at one place depends on the others, on "
            "chance, or changes the shape; give it in eval, or treat it as a layer."
        )
