"""Rules for the layers of a deep plain stack: orthogonal, mirrored where functions are not odd."""

from collections.abc import Callable
from itertools import groupby

from torch import Tensor

from stablelightning.errors import ModelError
from stablelightning.functional.initialize import Layout
from stablelightning.functional.isometry import (
    is_even,
    is_odd,
    isometric_gain,
    mirrored,
    working_size,
)
from stablelightning.functional.orthogonal import (
    delta_orthogonal_,
    mirrored_orthogonal_,
    orthogonal_,
)
from stablelightning.functional.quadrature import Scalar
from stablelightning.model.attribution import LayerRole
from stablelightning.model.schemes import FunctionBook, Rule, Scheme
from stablelightning.model.stacks import Stack


def isometry_rules(
    stacks: list[Stack],
    scheme: Scheme,
    *,
    book: FunctionBook,
    weight_of: Callable[[LayerRole], Tensor | None],
) -> dict[tuple[str, ...], Rule]:
    """The rules for every layer of every stack that the scheme makes an isometry.

    The stack works at a signal of size ``s``, small enough that its functions hardly bend it: the
    first layer scales to ``s``, the others keep it, the last makes up for it. Layers come in
    mirrored halves, ``(h, -h)``, unless the function is odd.

    Args:
        stacks: of the model.
        scheme: chooses among them.
        book: of the model's functions.
        weight_of: the weight of a layer if it may be written, else ``None``.

    Returns:
        A rule for the parameters of each such layer.

    Source:
        Balduzzi et al. 2017, arXiv:1702.08591 (mirrored); Saxe et al. 2014, arXiv:1312.6120
        (orthogonal); Xiao et al. 2018, arXiv:1806.05393 (kernels). The working size is measured.
    """
    rules: dict[tuple[str, ...], Rule] = {}
    for stack in stacks:
        for run in _writable_runs(stack, weight_of):
            functions = [role.consumer.function for role in run[:-1]]
            try:
                known = [book.first(f) for f in functions if f is not None]
                found = [book.properties(f) for f in known]
            except ModelError:
                continue
            if len(known) == len(run) - 1 > 0 and scheme.isometric(len(run), found):
                weights = [w for w in map(weight_of, run) if w is not None]
                rules.update(_Isometry(run, weights, known, scheme).rules())
    return rules


def _writable_runs(
    stack: Stack, weight_of: Callable[[LayerRole], Tensor | None]
) -> list[list[LayerRole]]:
    """Consecutive layers that may be written, and whose weights mix all their units."""

    def writable(role: LayerRole) -> bool:
        layout = Layout.of(role.module)
        spread = layout.transposed and any(step != 1 for step in layout.stride)
        return weight_of(role) is not None and layout.groups == 1 and not spread

    return [list(run) for fine, run in groupby(stack.layers, writable) if fine]


class _Isometry:
    """One run of layers, and the function after each but the last."""

    def __init__(
        self,
        roles: list[LayerRole],
        weights: list[Tensor],
        functions: list[Scalar],
        scheme: Scheme,
    ) -> None:
        self._roles, self._weights = roles, weights
        pairs: dict[Scalar, tuple[bool, Scalar]] = {}
        for function in functions:
            if function not in pairs:
                odd = is_odd(function)
                pairs[function] = odd, function if odd else mirrored(function)
        self._even = any(is_even(function) for function in pairs)
        if self._even:
            return
        #: Whether each layer but the last makes mirrored halves, and what a unit hands on.
        self._mirrors = [not pairs[function][0] for function in functions]
        self._handed = [pairs[function][1] for function in functions]
        self._size = 1.0 if scheme.unit_size else working_size(self._handed)
        gains = {f: isometric_gain(f, self._size) for f in dict.fromkeys(self._handed)}
        self._gains = [gains[f] for f in self._handed]

    def rules(self) -> dict[tuple[str, ...], Rule]:
        if self._even or not self._fits():
            return {}
        last = len(self._roles) - 1
        rules = {}
        for place, role in enumerate(self._roles):
            gain = 1.0 if place == 0 else self._gains[place - 1]
            gain *= 1.0 if place == last else self._size
            rules[role.parameters] = self._rule(place, role, gain)
        return rules

    def _fits(self) -> bool:
        """Whether every layer that is to be halved has two units or more."""
        for weight, role, halved in zip(self._weights, self._roles, self._mirrors, strict=False):
            units = weight.shape[1] if Layout.of(role.module).transposed else weight.shape[0]
            if halved and units < 2:
                return False
        return True

    def _rule(self, place: int, role: LayerRole, gain: float) -> Rule:
        reads = place > 0 and self._mirrors[place - 1]
        makes = place < len(self._mirrors) and self._mirrors[place]
        layout = Layout.of(role.module)
        weight = self._weights[place]
        kernel = role.kind != "linear"
        outputs, inputs = weight.shape[:2] if not layout.transposed else weight.shape[1::-1]
        # A centre that makes more units than it reads would repeat itself; so would one that a
        # stride lets see a part of the pixels only. The whole kernel has more to read.
        centre = outputs // (1 + makes) <= inputs // (1 + reads)
        centre = centre and all(step == 1 for step in layout.stride)
        size = "" if self._size == 1 else f", signal of size {self._size:g}"
        why = f"{place + 1} of {len(self._roles)} weights in a plain stack{size}"
        if reads or makes:
            return Rule(
                "mirrored orthogonal",
                gain,
                why,
                lambda weight: mirrored_orthogonal_(
                    weight,
                    gain=gain,
                    reads_mirrored=reads,
                    makes_mirrored=makes,
                    centre=centre,
                    transposed=layout.transposed,
                ),
            )
        if kernel and centre:
            return Rule(
                "delta-orthogonal",
                gain,
                why,
                lambda weight: delta_orthogonal_(weight, gain=gain, layout=layout),
            )
        return Rule(
            "orthogonal", gain, why, lambda weight: orthogonal_(weight, gain=gain, layout=layout)
        )
