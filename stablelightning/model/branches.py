"""Residual branches and depth: where a forward goes around its weights, and where it cannot."""

from dataclasses import dataclass, field, replace

from stablelightning.model.regions import constant
from stablelightning.model.trace import Operation, Trace, Value
from stablelightning.model.weights import WeightUse

#: Operations of norms that are written by hand: a division by what was measured.
_MEASURED = ("rsqrt", "linalg_vector_norm", "norm", "std", "var", "var_mean", "std_mean")


@dataclass(frozen=True)
class Branch:
    """What is added to a stream that goes around it.

    Args:
        layers: dotted names of the weights inside, in order.
        last_layer: the last of them.
        last_norm: dotted name of a norm between the last weight and the addition, if there is one.
        has_norm: whether there is a norm anywhere inside.
        norm_after: whether the sum is normalised before anything else reads it, as in a post-norm
            block; the last norm of a pre-norm stream is not counted.
        scale: dotted name of a parameter that multiplies the branch after its last weight.
        scale_value: the largest magnitude in it.
        projection: dotted name of the weight in the way around, if it is no identity.
        index: position among the branches of the model.
        total: how many there are.
        add_in: dotted name of the module that adds.
        members: numbers of the operations inside.
    """

    layers: tuple[str, ...]
    last_layer: str
    last_norm: str | None
    has_norm: bool
    norm_after: bool
    scale: str | None
    scale_value: float | None
    projection: str | None
    index: int
    total: int
    add_in: str
    members: frozenset[int] = field(repr=False)


@dataclass
class Way:
    """How many weights lie on the paths through a model.

    Args:
        depth: of each operation: weights on the longest path before it.
        longest: on the longest path through the model.
        plain: on the longest stretch without a norm or a way around.
        last: numbers of the operations whose result the model returns with no weight after them.
    """

    depth: list[int]
    longest: int
    plain: int
    last: frozenset[int]


def find_branches(trace: Trace, uses: list[WeightUse]) -> tuple[list[Branch], Way]:
    """Find the residual branches of a watched forward, and its depth.

    An addition is residual if its two sides share what they come from, and one of them comes from
    there without a weight, or with one weight (a projection) where the other has several.
    """
    graph = _Graph(trace, uses)
    found: list[Branch] = []
    residual: dict[int, int] = {}
    for operation in trace.operations:
        branch = graph.branch(operation, residual)
        if branch is not None:
            residual[operation.number] = 1 << operation.number
            found.append(branch)
    total = len(found)
    placed = [replace(branch, index=index, total=total) for index, branch in enumerate(found)]
    return placed, graph.way(set(residual))


class _Graph:
    """Ancestors of every operation, as bits of one whole number."""

    def __init__(self, trace: Trace, uses: list[WeightUse]) -> None:
        self.trace = trace
        self.layer = {use.operation.number: use.name for use in uses}
        self.layers = sum(1 << number for number in self.layer)
        self.before: list[int] = []
        # Of each sum with an identity around its branch: what is inside, and what goes around.
        self.sums: dict[int, tuple[int, Value]] = {}
        for operation in trace.operations:
            mask = 0
            for maker in self._makers(operation):
                mask |= self.before[maker] | 1 << maker
            self.before.append(mask)

    @staticmethod
    def _makers(operation: Operation) -> list[int]:
        return [v.maker.number for v in operation.inputs() if v.moving and v.maker is not None]

    def _through(self, value: Value) -> int:
        assert value.maker is not None
        return self.before[value.maker.number] | 1 << value.maker.number

    def branch(self, operation: Operation, residual: dict[int, int]) -> Branch | None:
        """The branch that an addition closes, if it is residual."""
        if operation.kind != "add" or operation.name not in ("add", "__add__"):
            return None
        sides = [v for v in operation.inputs() if v.moving and v.maker is not None]
        if len(sides) != 2 or sides[0].tensor.shape != sides[1].tensor.shape:
            return None
        masks = [self._through(side) for side in sides]
        shared = masks[0] & masks[1]
        if not shared:
            return None
        own = [mask & ~shared for mask in masks]
        fork = shared.bit_length() - 1
        inside = [self._after(fork, mask & self.layers) for mask in own]
        if not any(inside):
            return None
        if all(inside):  # perhaps x + f(x) + g(x): x goes around g as well
            inside, own = self._beside(sides, inside, own)
        around = min((0, 1), key=lambda side: len(inside[side]))
        branch = 1 - around
        if len(inside[around]) > 1 or (inside[around] and len(inside[branch]) < 2):
            return None
        nested = sum(residual.values())
        if inside[around] and own[branch] & nested:
            return None  # a stage beside a projection, as in a feature pyramid
        if self._is_gated(own[around]):
            return None  # a highway: the gate decides what goes around
        projection = self.layer[inside[around][0]] if inside[around] else None
        found = self._describe(operation, own[branch], inside[branch], projection)
        if projection is None:
            self.sums[operation.number] = (own[branch], sides[around])
        if found.norm_after and self._is_a_stream(sides[around], own[branch], inside, residual):
            return replace(found, norm_after=False)
        return found

    def _is_a_stream(
        self, around: Value, mask: int, inside: list[list[int]], residual: dict[int, int]
    ) -> bool:
        """Whether sums run on without norms: one goes around here, or the branch is pre-norm."""
        if _source(around) in residual:
            return True
        first = min(number for side in inside for number in side)
        return any(
            self.trace.operations[n].kind == "norm" for n in _bits(mask & ((1 << first) - 1))
        )

    def _beside(
        self, sides: list[Value], inside: list[list[int]], own: list[int]
    ) -> tuple[list[list[int]], list[int]]:
        """Weights and operations of both sides, where one is a sum that the other is added to."""
        gone = [self._gone_around(side) for side in sides]
        bare = [[n for n in i if not g[0] >> n & 1] for i, g in zip(inside, gone, strict=True)]
        if all(bare) or not any(bare):
            return inside, own
        free = 0 if not bare[0] else 1
        skipped, base = gone[free]
        branch = self._through(sides[1 - free]) & ~self._through(base)  # a shared norm is in both
        kept = own[free] & ~skipped
        if free == 0:
            return [[], inside[1]], [kept, branch]
        return [inside[0], []], [branch, kept]

    def _gone_around(self, value: Value) -> tuple[int, Value]:
        """The insides of the identity branches whose sum a value is, and what goes around all."""
        found = 0
        while (branch := self.sums.get(_source(value))) is not None:
            found |= branch[0]
            value = branch[1]
        return found, value

    def _after(self, fork: int, mask: int) -> list[int]:
        return [n for n in _bits(mask) if self.before[n] >> fork & 1]

    def _is_gated(self, mask: int) -> bool:
        for number in _bits(mask):
            operation = self.trace.operations[number]
            if operation.kind == "multiply" and sum(v.moving for v in operation.inputs()) > 1:
                return True
        return False

    def _describe(
        self, operation: Operation, mask: int, layers: list[int], projection: str | None
    ) -> Branch:
        operations = [self.trace.operations[n] for n in _bits(mask)]
        last = layers[-1]
        tail = [o for o in operations if o.number > last]
        norms = [o for o in tail if o.kind == "norm"]
        scale, value = _scale(tail)
        readers = operation.outputs[0].users
        names = self.trace.names
        return Branch(
            layers=tuple(dict.fromkeys(self.layer[n] for n in layers)),
            last_layer=self.layer[last],
            last_norm=_norm_name(norms[-1]) if norms else None,
            has_norm=any(o.kind == "norm" or o.name in _MEASURED for o in operations),
            norm_after=bool(readers) and all(u.kind == "norm" for u in readers),
            scale=scale,
            scale_value=value,
            projection=projection,
            index=0,
            total=0,
            add_in="" if operation.module is None else names[operation.module],
            members=frozenset(o.number for o in operations),
        )

    def way(self, residual: set[int]) -> Way:
        """Longest paths, and the longest that nothing goes around."""
        depth: list[int] = []
        plain: list[int] = []
        for operation in self.trace.operations:
            makers = self._makers(operation)
            step = [m in self.layer for m in makers]
            before = max((depth[m] + s for m, s in zip(makers, step, strict=True)), default=0)
            depth.append(before)
            stretches = [plain[m] for m in makers] or [0]
            join = operation.number in residual or operation.kind == "cat"
            stretch = min(stretches) if join else max(stretches)
            if operation.kind == "norm" or operation.name in _MEASURED:
                stretch = 0
            plain.append(stretch + (operation.number in self.layer))
        ends = [d + (n in self.layer) for n, d in enumerate(depth)]
        return Way(depth, max(ends, default=0), max(plain, default=0), self._last())

    def _last(self) -> frozenset[int]:
        returned = upstream = 0
        for value in self.trace.outputs:
            if value.moving and value.maker is not None:
                returned |= self._through(value)
        for number in self.layer:
            upstream |= self.before[number]
        return frozenset(_bits(returned & self.layers & ~upstream))


def _source(value: Value) -> int:
    """Number of the operation that made the numbers of a value, past views and dropout."""
    maker = value.maker
    while maker is not None and maker.kind in ("view", "dropout"):
        maker = next((v.maker for v in maker.inputs() if v.moving), None)
    return -1 if maker is None else maker.number


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _norm_name(operation: Operation) -> str | None:
    named = [v.name for v in operation.inputs() if v.name and not v.moving]
    return named[0].rpartition(".")[0] if named else None


def _scale(tail: list[Operation]) -> tuple[str | None, float | None]:
    """A parameter that multiplies what comes after the last weight."""
    for operation in tail:
        if operation.kind != "multiply":
            continue
        for value in operation.inputs():
            root = value
            while root.maker is not None and root.maker.kind == "view" and root.maker.inputs():
                root = root.maker.inputs()[0]
            if root.name and not root.moving:
                if root.tensor.is_meta:
                    return root.name, None
                return root.name, float(root.tensor.detach().abs().max())
            number = None if value.moving else constant(value)
            if number is not None and root.name:
                return root.name, abs(number)
    return None, None
