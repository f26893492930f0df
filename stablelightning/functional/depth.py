"""How the variance of a signal and the cosine between two inputs change from layer to layer."""

import math

import torch
from torch import Tensor

from stablelightning.errors import ModelError
from stablelightning.functional.gains import second_moment
from stablelightning.functional.quadrature import (
    FIRST_PANELS,
    NODES,
    REACH,
    Panels,
    Scalar,
    composite_nodes,
    evaluate,
    gaussian_expectation,
    normal_density,
    resolve,
)

#: Nodes of a panel times panels times rows at a time; keeps the sums in a few megabytes.
_MOST_EVALUATIONS = 2**20
#: Closer to 1 than this, two signals are one, as far as float64 tells.
_PARALLEL = 1e-15


def variance_map(function: Scalar, variance: float) -> float:
    """Mean square of the activations that pre-activations of a given variance lead to.

    Times ``fan_in * std^2`` of the next weights it is the variance one layer on.

    Args:
        function: elementwise; takes float64.
        variance: of the pre-activations, >= 0.

    Returns:
        ``E[f(sqrt(q) z)^2]`` for ``q = variance``.

    Source:
        Poole et al. 2016, arXiv:1606.05340, equation 3.

    Example:
        >>> round(variance_map(torch.relu, 4.0), 9)
        2.0
    """
    scale = math.sqrt(max(variance, 0.0))
    if scale == 0.0:
        return float(evaluate(function, torch.zeros(1, dtype=torch.float64, device="cpu")).square())
    return second_moment(lambda z: function(scale * z))


def cosine_map(function: Scalar, cosine: float, *, variance: float = 1.0) -> float:
    """The cosine between the activations of two inputs, from that of their pre-activations.

    It is also the cosine of the next pre-activations, whatever the gain (without biases). Where it
    nears 1 over depth, all inputs come to look alike.

    Args:
        function: elementwise; takes float64.
        cosine: of the pre-activations of two inputs, in [-1, 1].
        variance: of both, > 0.

    Returns:
        ``E[f(u) f(v)] / E[f(u)^2]`` for normal ``u``, ``v`` of that variance and correlation.

    Raises:
        ModelError: the function is zero.

    Source:
        Poole et al. 2016, arXiv:1606.05340, equation 5; for ReLU in closed form in Cho, Saul 2009.

    Example:
        >>> round(cosine_map(torch.relu, 0.0), 9), round(1 / math.pi, 9)
        (0.318309886, 0.318309886)
    """
    scale, c = math.sqrt(variance), min(max(cosine, -1.0), 1.0)

    def scaled(z: Tensor) -> Tensor:
        return function(scale * z)

    panels = resolve(scaled)
    square = second_moment(scaled, panels=panels)
    if not square > 0:
        raise ModelError("a cosine needs a signal, and this function is zero everywhere.")
    if 1 - c < _PARALLEL:
        return 1.0
    if 1 + c < _PARALLEL:
        edges = torch.cat([panels.edges, -panels.edges]).unique()
        opposed = gaussian_expectation(
            lambda z: scaled(z) * scaled(-z), panels=Panels(edges, panels.kinks)
        )
        return opposed / square
    return _correlated(scaled, panels, c) / square


def _correlated(function: Scalar, panels: Panels, c: float) -> float:
    """``E[f(u) f(v)]``: for each node ``u`` an integral over ``v`` given ``u``, split at kinks."""
    spread = math.sqrt(1 - c * c)
    nodes, weights = composite_nodes(_graded(panels, c, spread))
    weights = weights * normal_density(nodes)
    kept = weights > 0
    nodes, weights = nodes[kept], weights[kept]
    regular = torch.linspace(-REACH, REACH, 2 * int(REACH) + 1, dtype=torch.float64, device="cpu")
    # Panels of the first width need no edges inside: the regular ones, one wide, resolve as much.
    fine = panels.edges.diff() < REACH / FIRST_PANELS
    steep = panels.edges[:-1][fine] if fine.any() else panels.edges[:1]
    inner = torch.cat([_thinned(steep, finest=spread / 8), panels.kinks])
    rows = max(1, _MOST_EVALUATIONS // ((len(regular) + len(inner)) * NODES))
    total = 0.0
    for u, w in zip(nodes.split(rows), weights.split(rows), strict=True):
        # v = c u + spread * t, so that a kink of v at k is one of t at (k - c u) / spread.
        at = ((inner[None] - c * u[:, None]) / spread).clamp(-REACH, REACH)
        edges = torch.cat([at, regular.expand(len(u), -1)], 1).sort(1).values
        t, wt = composite_nodes(edges)
        values = evaluate(function, c * u[:, None] + spread * t)
        given_u = (values * wt * normal_density(t)).sum(1)
        total += float((evaluate(function, u) * given_u * w).sum())
    return total


def _graded(panels: Panels, c: float, spread: float) -> Tensor:
    """Edges over ``u``, finer towards the places where a kink passes through the mean of ``v``."""
    halvings = torch.arange(max(1, math.ceil(math.log2(REACH / spread))), dtype=torch.float64)
    steps = spread * 2**halvings
    around = torch.cat([-steps, steps.new_zeros(1), steps])
    centres = panels.kinks / c if c else panels.kinks
    close = (centres[:, None] + around).flatten()
    close = close[close.abs() < REACH]
    return _thinned(torch.cat([panels.edges, close]).sort().values, finest=spread / 8)


def _thinned(edges: Tensor, *, finest: float) -> Tensor:
    """Edges without those that follow another more closely than ``finest``."""
    kept = [float(edges[0])]
    for edge in edges[1:].tolist():
        if edge - kept[-1] >= finest:
            kept.append(edge)
    kept[-1] = float(edges[-1])
    return torch.tensor(kept, dtype=torch.float64)
