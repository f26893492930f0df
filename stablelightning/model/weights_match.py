"""What of a weights file belongs where in a model: by name and shape, below any wrapper."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.errors import ModelError
from stablelightning.model.structure import find_heads
from stablelightning.model.weights_report import LoadReport, Reshaped

#: What ``torch.compile`` puts into the names of what it wraps.
_COMPILED = "_orig_mod."
#: Prefixes that are tried in full; those that most names share come first.
_TRIED = 8


@dataclass(frozen=True)
class Match:
    """Where each tensor of a file would go; nothing is written."""

    network: nn.Module
    targets: dict[str, Tensor]
    own_names: dict[str, str]
    stripped: dict[str, Tensor]
    outside: tuple[str, ...]
    prefix: str
    scope: str
    head: frozenset[str]
    notes: tuple[str, ...] = ()
    before: "Match | None" = field(default=None, repr=False)

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """By the model's names, what fits."""
        return {n: v for n, v in self._common() if _fits(v, self.targets[n])}

    @cached_property
    def reshaped(self) -> tuple[Reshaped, ...]:
        """What has the name and not the shape."""
        return tuple(
            Reshaped(n, *_told_apart(v, self.targets[n]))
            for n, v in self._common()
            if n not in self.values
        )

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Names in the model without a value, their own or that of a tensor that they share."""
        given = {id(self.targets[name]) for name in self.values}
        there = {name for name, _ in self._common()}
        return tuple(
            name
            for name, target in self.targets.items()
            if name.startswith(self.scope) and name not in there and id(target) not in given
            if not self._is_counter(name)
        )

    @cached_property
    def unexpected(self) -> tuple[str, ...]:
        """Names in the file, as they stand there, without a place in the model."""
        inside = (n for n in self.stripped if f"{self.scope}{n}" not in self.targets)
        return (*(f"{self.prefix}{n}" for n in inside), *self.outside)

    @property
    def lacking(self) -> bool:
        """Whether a name below the head has no value."""
        return any(
            name not in self.head for name in (*self.missing, *(r.name for r in self.reshaped))
        )

    @property
    def loaded_values(self) -> int:
        """How many numbers below the head would be written."""
        given = {id(self.targets[n]): v for n, v in self.values.items() if n not in self.head}
        return sum(value.numel() for value in given.values())

    @property
    def share(self) -> float:
        """Of the model's numbers below the head."""
        wanted = self._below_head()
        total = sum(1 if is_lazy(t) else t.numel() for t in wanted.values())
        if not total:  # a head and nothing else
            return float(bool(self.values))
        given = {id(self.targets[n]) for n in self.values}
        loaded = [t for key, t in wanted.items() if key in given]
        return sum(1 if is_lazy(t) else t.numel() for t in loaded) / total

    @property
    def share_of_file(self) -> float:
        """Of the file's numbers in parts that the model has, beside its head, how many are used.

        What a checkpoint holds beside the network (a decoder, a teacher) is not asked for.
        """
        parts = {
            name.removeprefix(self.scope).partition(".")[0]
            for name in self.targets
            if name.startswith(self.scope) and name not in self.head
        }
        used = foreign = 0
        for name, value in self.stripped.items():
            if f"{self.scope}{name}" in self.values:
                used += value.numel()
            elif f"{self.scope}{name}" in self.head:
                continue
            elif self.scope or name.partition(".")[0] in parts:
                foreign += value.numel()
        return used / (used + foreign) if used else 0.0

    def report(self, path: str, *, section: str = "") -> LoadReport:
        """The same in a form that is kept.

        Args:
            path: of the file.
            section: where in the file the weights were.
        """
        place = [f"read from {section!r} of the checkpoint"] if section else []
        taken = [f"the prefix {self.prefix!r} was taken off"] if self.prefix else []
        taken += [f"it went into {self.scope.rstrip('.')}"] if self.scope else []
        return LoadReport(
            path=path,
            model=type(self.network).__name__,
            loaded=tuple(self.values),
            missing=self.missing,
            unexpected=self.unexpected,
            reshaped=self.reshaped,
            share=self.share,
            prefix=self.prefix,
            head=tuple(sorted(self.head)),
            notes=(*place, *taken, *self.notes, *self._resized(), *self._cast(), *self._shared()),
        )

    def _is_counter(self, name: str) -> bool:
        """Files from before 2018 have statistics of batch norm, and do not count its batches."""
        norm, _, local = name.rpartition(".")
        return local == "num_batches_tracked" and f"{norm}.running_mean" in self.values

    def _common(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.stripped.items():
            if f"{self.scope}{name}" in self.targets:
                yield f"{self.scope}{name}", value

    def _below_head(self) -> dict[int, Tensor]:
        return {
            id(target): target
            for name, target in self.targets.items()
            if name.startswith(self.scope) and name not in self.head
        }

    def _resized(self) -> list[str]:
        if self.before is None:
            return []
        other = {r.name: r for r in self.before.reshaped}
        resized = [other[name] for name in self.values if name in other]
        notes = [f"{name} was resized from {a} to {b}" for name, a, b in resized]
        renamed = len([n for n in self.before.missing if n in self.values])
        return [*notes, f"{renamed} keys were translated by the library"] if renamed else notes

    def _cast(self) -> list[str]:
        pairs = Counter(
            (str(value.dtype), str(self.targets[name].dtype))
            for name, value in self.values.items()
            if value.dtype != self.targets[name].dtype
        )
        return [
            f"{count} of {len(self.values)} tensors were cast from {source} to {target}"
            for (source, target), count in pairs.items()
        ]

    def _shared(self) -> list[str]:
        """Names of one tensor in the model that have two values in the file: the last one wins."""
        first: dict[int, str] = {}
        notes = []
        for name, value in self.values.items():
            other = first.setdefault(id(self.targets[name]), name)
            if not torch.equal(self.values[other], value):
                notes.append(f"{other} and {name} are one tensor in the model and two in the file")
        return notes


def match(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    head: str | None = None,
    wrapped: Match | None = None,
) -> Match:
    """Find where the tensors of a file go in a model.

    Args:
        model: not changed.
        tensors: by the names in the file.
        head: dotted name of the head that was taken off before the file was written.
        wrapped: an earlier match, whose prefixes are known and off already.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> match(net, {f"model.{k}": v for k, v in net.state_dict().items()}).prefix
        'model.'
    """
    own = {n: v for n, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    targets = {name.replace(_COMPILED, ""): value for name, value in own.items()}
    clean = {name.replace(_COMPILED, ""): value for name, value in tensors.items()}
    notes: tuple[str, ...] = ()
    if any(_COMPILED in name for name in tensors):
        notes = (f"{_COMPILED!r} of a compiled module was taken off",)
    if wrapped is None:
        prefix, scope = _prefixes(clean, targets)
        stripped = {n.removeprefix(prefix): v for n, v in clean.items() if n.startswith(prefix)}
        outside = tuple(name for name in clean if not name.startswith(prefix))
    else:
        prefix, scope, notes = wrapped.prefix, wrapped.scope, wrapped.notes
        stripped, outside = clean, wrapped.outside
    modules = {name.replace(_COMPILED, ""): m for name, m in model.named_modules()}
    network = modules.get(scope.removesuffix("."), model)
    return Match(
        network=network,
        targets=targets,
        own_names={name.replace(_COMPILED, ""): name for name in own},
        stripped=stripped,
        outside=outside,
        prefix=prefix,
        scope=scope,
        head=frozenset(_head_names(network, targets, scope, head)),
        notes=notes,
        before=wrapped,
    )


# ---- prefixes ---------------------------------------------------------------------------------


def _prefixes(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[str, str]:
    """What to take off the names of the file, and what to put before them, to agree most."""
    best, most = ("", ""), _agreement(tensors, targets, "", "")
    wanted = sum(t.numel() for t in targets.values() if not is_lazy(t))
    if most == wanted:
        return best
    firsts = dict.fromkeys(name.partition(".")[0] + "." for name in tensors if "." in name)
    pairs = [(prefix, "") for prefix in _ends_in(tensors, targets)]
    for off in ("", *list(firsts)[:_TRIED]):
        rest = {n.removeprefix(off): v for n, v in tensors.items() if n.startswith(off)}
        pairs += [(off, scope) for scope in _ends_in(targets, rest)]
    for off, scope in pairs:
        # One layer of a file fits somewhere in any model, if only what is around it is left out.
        if off and scope and _is_one_layer(scope, targets):
            continue
        agreement = _agreement(tensors, targets, off, scope)
        if agreement > most:
            best, most = (off, scope), agreement
    return best


def _is_one_layer(scope: str, targets: Mapping[str, Tensor]) -> bool:
    """Whether a layer holds all below a prefix: a weight and a bias, or those of a norm."""
    return len({name.rpartition(".")[0] for name in targets if name.startswith(scope)}) == 1


def _ends_in(names: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> list[str]:
    """What stands before names that end in a known one; the most frequent first."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for split in range(1, len(parts)):
            if ".".join(parts[split:]) in known:
                found[".".join(parts[:split]) + "."] += 1
    return [prefix for prefix, _ in found.most_common(_TRIED)]


def _agreement(
    tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], off: str, scope: str
) -> int:
    """Numbers whose name and shape agree."""
    agreed = 0
    for name, value in tensors.items():
        if name.startswith(off):
            target = targets.get(scope + name[len(off) :])
            if target is not None and _fits(value, target):
                agreed += value.numel()
    return agreed


# ---- heads and shapes -------------------------------------------------------------------------


def _head_names(
    network: nn.Module, targets: Mapping[str, Tensor], scope: str, taken_off: str | None
) -> Iterator[str]:
    try:
        heads = find_heads(network)
    except ModelError:
        heads = []
    inside = {id(v) for head in heads for v in (*head.parameters(), *head.buffers())}
    # A tensor that the head shares with the body (tied embeddings) is of the body.
    names = {name for name, target in targets.items() if id(target) in inside}
    if len(names) < len(targets):  # a network that is nothing but a head has no body to measure
        yield from (name for name in names if not _is_shared(name, names, targets))
    if taken_off:
        yield from (name for name in targets if name.startswith(f"{scope}{taken_off}."))


def _is_shared(name: str, names: set[str], targets: Mapping[str, Tensor]) -> bool:
    return any(other not in names and target is targets[name] for other, target in targets.items())


def _fits(value: Tensor, target: Tensor) -> bool:
    if value.is_floating_point() != target.is_floating_point():
        return False
    return is_lazy(target) or value.shape == target.shape


def _told_apart(value: Tensor, target: Tensor) -> tuple[str, str]:
    if value.shape != target.shape:
        return _shape(value), _shape(target)
    return str(value.dtype), str(target.dtype)


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"
