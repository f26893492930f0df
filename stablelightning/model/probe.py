"""How much of a task can be read off a network at each depth, before it is trained for that task.

After how many groups a linear classifier does best tells which of them are worth keeping: the
lower layers of a network fit any task, the upper ones that for which they were trained.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from stablelightning.checks import check_whole
from stablelightning.errors import DataError, ModelError
from stablelightning.functional.probe import ProbeScore, probe_accuracy, probe_r2
from stablelightning.model.depth import DepthGroup, depth_groups
from stablelightning.model.inputs import arguments_of
from stablelightning.model.materialize import quiet_eval

#: Rows beyond these make a probe slower and no surer.
ROWS = 2000
#: Numbers that are kept of a row's features: maps are averaged over coarser grids until they fit.
_MOST_FEATURES = 2048
_POOLS: dict[int, Callable[[Tensor, int], Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@dataclass(frozen=True)
class ProbeProfile:
    """What linear probes reached after each depth.

    Args:
        kind: ``"accuracy"`` (balanced) for classes, ``"r2"`` (explained variance) for numbers.
        groups: names of the depth groups, from input to output.
        scores: the k-th from what k groups make of the inputs; the first from the inputs
            themselves, the last from what the head reads. ``None`` where there were no numbers to
            be probed.
        rows: how many were probed.
        classes: how many of them; 0 for numbers.
        fewest: rows of the smallest class; all rows for numbers.

    Example:
        >>> score = ProbeScore(0.9, 0.5, 0.05)
        >>> profile = ProbeProfile("accuracy", ("0", "2"), (None, score), 20, 2, 9)
        >>> profile.best, profile.at_head.value
        (1, 0.9)
    """

    kind: str
    groups: tuple[str, ...]
    scores: tuple[ProbeScore | None, ...]
    rows: int
    classes: int
    fewest: int

    @property
    def at_head(self) -> ProbeScore:
        """What can be read where the head reads."""
        last = self.scores[-1]
        assert last is not None
        return last

    @property
    def best(self) -> int:
        """The depth with the highest score; of equal ones the nearest to the head."""
        known = [(score.value, depth) for depth, score in enumerate(self.scores) if score]
        return max(known)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as a checkpoint keeps them."""
        return {
            "kind": self.kind,
            "groups": list(self.groups),
            "scores": [s and [s.value, s.chance, s.error] for s in self.scores],
            "rows": self.rows,
            "classes": self.classes,
            "fewest": self.fewest,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "ProbeProfile":
        """What :meth:`to_dict` gave.

        Example:
            >>> state = ProbeProfile("r2", ("0",), (ProbeScore(0.5, 0.0, 0.1),), 9, 0, 9).to_dict()
            >>> ProbeProfile.from_dict(state).at_head.value
            0.5
        """
        return cls(
            kind=state["kind"],
            groups=tuple(state["groups"]),
            scores=tuple(s and ProbeScore(*s) for s in state["scores"]),
            rows=state["rows"],
            classes=state["classes"],
            fewest=state["fewest"],
        )


def probe_by_depth(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    groups: Sequence[DepthGroup] | None = None,
    task: str | None = None,
    rows: int = ROWS,
    call: Callable[..., Any] | None = None,
) -> ProbeProfile:
    """Probe what each depth of a network says of a task, in one pass over its training rows.

    What the first module of each group reads is what the groups below it made: it is averaged over
    the places of a map or sequence until at most 2,048 numbers of a row are left, and a linear
    model is fitted to it (:func:`~stablelightning.functional.probe.probe_accuracy`,
    :func:`~stablelightning.functional.probe.probe_r2`). In eval, without gradients; flags, buffers,
    generators and what a forward keeps on its modules are left as they were.

    Args:
        model: any module.
        batches: pairs of inputs, as the forward takes them, and a target: labels ``(N,)`` or
            numbers ``(N,)`` or ``(N, K)``. Negative labels are left out.
        groups: of this model; ``None`` for :func:`~stablelightning.model.depth.depth_groups`.
        task: ``"classification"`` or another; ``None`` takes whole numbers for labels.
        rows: at most so many are read, >= 4.
        call: what is called; the model itself if not given.

    Raises:
        DataError: there are no rows, the targets fit neither kind, or too few of a class.
        ModelError: what the head reads cannot be seen, or is not one row for each target.

    Source:
        Alain, Bengio 2016, arXiv:1610.01644.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(40, 4)
        >>> profile = probe_by_depth(net, [(x, (x[:, 0] > 0).long())])
        >>> profile.groups, len(profile.scores), profile.rows
        (('0', '2'), 2, 40)
    """
    check_whole("rows", rows, least=4)
    found = list(groups) if groups is not None else depth_groups(model)
    with quiet_eval(model):
        features, target = _gathered(model, found, batches, rows=rows, call=call or model)
    labelled = _is_classes(target, task)
    if labelled:
        target = target.reshape(-1)
        known = (target >= 0).nonzero()[:, 0]
        target = target[known]
        features = [None if f is None else f[known] for f in features]
    probe = probe_accuracy if labelled else probe_r2
    scores = [None if f is None else probe(f, target) for f in features]
    if scores[-1] is None:
        raise ModelError(
            f"a probe needs what the head ({found[-1].name}) of {type(model).__name__} reads as "
            "numbers, one row for each target, and got none; name groups whose head is a module."
        )
    counts = target.unique(return_counts=True)[1] if labelled else torch.tensor([len(target)])
    return ProbeProfile(
        kind="accuracy" if labelled else "r2",
        groups=tuple(group.name for group in found),
        scores=tuple(scores),
        rows=len(target),
        classes=len(counts) if labelled else 0,
        fewest=int(counts.min()),
    )


def pooled_features(values: Tensor, rows: int, *, channels_first: bool) -> Tensor | None:
    """One row of numbers for each row of a batch: maps averaged over a grid as fine as fits.

    Args:
        values: what a layer reads: ``(N, D)``, ``(N, C, ...)`` or ``(N, ..., C)``, or with the
            steps of a sequence first, ``(T, N, C)``.
        rows: N.
        channels_first: of values with more than two axes.

    Returns:
        ``(N, at most 2048)`` float32 on the CPU; ``None`` where there is no row for each of N.

    Example:
        >>> pooled_features(torch.ones(2, 64, 9, 9), 2, channels_first=True).shape
        torch.Size([2, 1600])
    """
    if not values.is_floating_point() or values.ndim == 0:
        return None
    if values.ndim > 1 and values.shape[0] != rows and values.shape[1] == rows:
        values = values.transpose(0, 1)
    if values.shape[0] != rows:
        return None
    values = values.detach().float()
    if values[0].numel() > _MOST_FEATURES and values.ndim > 2:
        values = values if channels_first else values.movedim(-1, 1)
        places = values.ndim - 2
        if places not in _POOLS:
            values, places = values.flatten(2), 1
        side = max(1, int((_MOST_FEATURES / values.shape[1]) ** (1 / places)))
        values = _POOLS[places](values, side)
    flat = values.reshape(rows, -1)
    if flat.shape[1] > _MOST_FEATURES:
        kept = torch.linspace(0, flat.shape[1] - 1, _MOST_FEATURES).round().long()
        flat = flat[:, kept.to(flat.device)]
    return flat.cpu()


def _gathered(
    model: nn.Module,
    groups: Sequence[DepthGroup],
    batches: Iterable[tuple[Any, Tensor]],
    *,
    rows: int,
    call: Callable[..., Any],
) -> tuple[list[Tensor | None], Tensor]:
    parts: list[list[Tensor | None]] = [[] for _ in groups]
    targets: list[Tensor] = []
    seen = 0
    readers = [_Reader(model, group) for group in groups]
    try:
        for inputs, target in batches:
            _check_target(target)
            for reader in readers:
                reader.begin(len(target))
            args, kwargs = arguments_of(inputs)
            call(*args, **kwargs)
            targets.append(target.detach().cpu())
            for part, reader in zip(parts, readers, strict=True):
                part.append(reader.values)
            seen += len(target)
            if seen >= rows:
                break
    finally:
        for reader in readers:
            reader.leave()
    if not targets:
        raise DataError("a probe needs rows of training data, got none; give it batches.")
    return [_joined(part) for part in parts], torch.cat(targets)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    widths = {part.shape[1] for part in known}
    # Sequences of another length in each batch give rows that do not compare.
    return torch.cat(known) if len(known) == len(parts) and len(widths) == 1 else None


class _Reader:
    """Keeps what the first module of a group reads, the first time that it is called."""

    def __init__(self, model: nn.Module, group: DepthGroup) -> None:
        names = dict(model.named_modules())
        inside = [names[name] for name in group.modules if name in names]
        self._channels_first = any(isinstance(module, _ConvNd) for module in inside)
        self._handles = [
            module.register_forward_pre_hook(self._read, with_kwargs=True) for module in inside
        ]
        self.begin(0)

    def begin(self, rows: int) -> None:
        self._rows = rows
        self._called = False
        self.values: Tensor | None = None

    def _read(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._called:
            return
        self._called = True
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.values = pooled_features(leaf, self._rows, channels_first=self._channels_first)
                return

    def leave(self) -> None:
        for handle in self._handles:
            handle.remove()


def _check_target(target: Any) -> None:
    if not isinstance(target, Tensor) or target.ndim not in (1, 2) or not len(target):
        got = (
            f"shape {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        )
        raise DataError(
            f"a probe needs a target for each row, labels (N,) or numbers (N, K), got {got}; "
            "choose a plan by hand for other tasks."
        )


def _is_classes(target: Tensor, task: str | None) -> bool:
    whole = not target.is_floating_point() and not target.is_complex()
    single = target.ndim == 1 or target.shape[1] == 1
    if task in (None, "classification") and whole and single:
        return True
    if task == "classification" or (task is None and whole and int(target.max()) > 1):
        raise DataError(
            f"a probe of classes needs labels (N,) of whole numbers, got {target.dtype} "
            f"{tuple(target.shape)}; choose a plan by hand for other tasks."
        )
    return False
