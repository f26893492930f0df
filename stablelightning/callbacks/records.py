"""What is kept of a test dataloader: sums for the scores, and rows where outputs are per row."""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor
from torch.utils.data import DistributedSampler

from stablelightning.callbacks.scoring import Sums, aligned_target, decision_scores, scores_of
from stablelightning.errors import DataError, StableLightningWarning
from stablelightning.functional.recalibrate import level_of_errors
from stablelightning.functional.uncertainty import gaussian_mixture_log_likelihood
from stablelightning.model.prediction import Prediction
from stablelightning.model.summarize import select_output
from stablelightning.nn.heads import Gaussian, Quantiles

#: Samplers that give rank r the entries r, r + world, r + 2 * world, ... and repeat the first ones
#: at the end so that every rank has as many. Others may deal them out in any order.
_INTERLEAVING = (DistributedSampler, DistributedSamplerWrapper)


@dataclass(frozen=True)
class Observation:
    """One batch as it was predicted.

    Args:
        sampled: the Monte Carlo prediction, in the target's units.
        plain: the prediction of one eval pass; its ``total`` is 0 without a variance head.
        target: what the batch says, ``None`` if nothing.
        class_dim: where the classes are.
        rows: number of dataset rows in the batch.
        corrected: what calibration and its like have made of ``sampled``, ``None`` without them.
    """

    sampled: Prediction
    plain: Prediction
    target: Tensor | None
    class_dim: int
    rows: int
    corrected: Prediction | None = None

    @property
    def calibrated(self) -> Prediction | None:
        """The corrected prediction where it is another; sets and decisions leave it as it was."""
        new, old = self.corrected, self.sampled
        same = new is None or (new.mean is old.mean and new.total is old.total)
        return None if same else new

    @property
    def last(self) -> Prediction:
        """What is told in the end, with its sets, intervals and decisions."""
        return self.sampled if self.corrected is None else self.corrected

    def in_target_units(self, scale: tuple[Any, Any] | None) -> "Observation":
        """Undo the standardisation of the target, where there was one."""
        if scale is None or self.sampled.task != "regression":
            return self
        centre, std = (torch.as_tensor(s).to(self.sampled.mean) for s in scale)
        return replace(
            self,
            sampled=in_target_units(self.sampled, scale),
            plain=in_target_units(self.plain, scale),
            target=None if self.target is None else self.target * std + centre,
        )


class Positions:
    """Where the rows that this process sees stand in the order of the whole dataloader.

    Args:
        loader: the dataloader that Lightning iterates.
        rank: of this process.
        world: number of processes.
        cycles: whether the loader may start over while others still run (a CombinedLoader).
    """

    def __init__(self, loader: Any, *, rank: int, world: int, cycles: bool = False) -> None:
        self._seen = 0
        self._first, self._step = rank, world
        self._size = _size(loader, world) if cycles or world > 1 else None

    def next(self, rows: int) -> tuple[Tensor, Tensor]:
        """Index of the next rows, and which of them are new (no padding, no second round)."""
        index = (self._seen + torch.arange(rows)) * self._step + self._first
        self._seen += rows
        fresh = torch.ones(rows, dtype=torch.bool) if self._size is None else index < self._size
        return index, fresh


def _size(loader: Any, world: int) -> int | None:
    """How many different rows all processes see together; None where that cannot be known."""
    sampler: Any = getattr(loader, "sampler", None)
    if world > 1:
        return len(sampler.dataset) if type(sampler) in _INTERLEAVING else None
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):  # iterable datasets, endless samplers
        return None


@dataclass
class Record:
    """What one process has seen of one dataloader; plain data, so that it can be gathered."""

    task: str
    sums: Sums = field(default_factory=Sums)
    rows: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, seen: Observation, index: Tensor, fresh: Tensor) -> None:
        """Add a batch.

        Args:
            seen: the predictions and the target.
            index: ``(N,)`` position of each row in the dataset.
            fresh: ``(N,)`` rows that count.

        Raises:
            DataError: the target does not fit the prediction.
        """
        fresh = fresh.to(seen.sampled.mean.device)
        self._add_uncertainties(seen, fresh)
        if seen.target is not None:
            target = seen.target.to(seen.sampled.mean.device)
            target = aligned_target(seen.sampled.task, seen.sampled.mean, target, seen.class_dim)
            seen = replace(seen, target=target)
            self._add_scores(seen, target, fresh)
        if not _is_dense(seen):
            self.sums.add(decision_scores(seen.last, seen.target, fresh))
        if not _is_dense(seen):
            self.rows.append(_rows(seen, index, fresh))

    def _add_uncertainties(self, seen: Observation, fresh: Tensor) -> None:
        names = ("total", "aleatoric", "epistemic", "variation_ratio")
        values = {name: getattr(seen.sampled, name) for name in names}
        self.sums.add({k: v[_rows_of(v, fresh)] for k, v in values.items() if v is not None})
        used = torch.full((int(fresh.sum()),), float(seen.sampled.samples_used))
        self.sums.add({"samples_used": used})

    def _add_scores(self, seen: Observation, target: Tensor, fresh: Tensor) -> None:
        task, flat = seen.sampled.task, target.reshape(-1)
        counted = fresh.repeat_interleave(len(flat) // len(fresh))
        if task == "classification":
            counted &= _known_classes(flat, seen.sampled.mean.shape[seen.class_dim])
        flat = flat[counted]
        scored = [(seen.plain, ""), (seen.sampled, "_mc")]
        if seen.calibrated is not None:
            scored.append((seen.calibrated, "_calibrated"))
        for prediction, suffix in scored:
            mean = _flattened(prediction.mean, task, seen.class_dim)[counted]
            spread = prediction.total if task == "regression" else None
            if suffix == "" and not bool((prediction.total > 0).any()):
                spread = None  # no variance head: one pass says nothing about its error
            variance = None if spread is None else spread.reshape(-1)[counted]
            scores = scores_of(seen.sampled.task, mean, flat, variance=variance)
            if suffix and prediction.samples is not None and "nll" in scores:
                scores["nll"] = _mixture_nll(prediction.samples, counted, flat)
            if prediction.quantiles is not None and "coverage_90" in scores:
                lower, upper = (end.reshape(-1)[counted] for end in prediction.interval(0.9))
                scores["coverage_90"] = (lower <= flat) & (flat <= upper)
            self.sums.add(scores, suffix=suffix)
            if task == "classification":
                self.sums.add_calibration(mean, flat, suffix=suffix)

    @staticmethod
    def merged(parts: list["Record"]) -> "Record":
        """One record from those of all processes, rows in the order of the dataset.

        Raises:
            DataError: the processes took the task for different ones.
        """
        tasks = sorted({part.task for part in parts})
        if len(tasks) > 1:
            raise DataError(
                f"every process must see the same task, got {' and '.join(tasks)} from what their "
                "first batches look like; name it: EstimateUncertainty(task=...)."
            )
        rows = [batch for part in parts for batch in part.rows]
        if not rows:
            return Record(tasks[0], Sums.merged(part.sums for part in parts))
        table = {key: torch.cat([batch[key] for batch in rows]) for key in rows[0]}
        order = table["index"].argsort(stable=True)
        ordered = {key: column[order] for key, column in table.items()}
        return Record(tasks[0], Sums.merged(part.sums for part in parts), [ordered])


def in_target_units(prediction: Prediction, scale: tuple[Any, Any] | None) -> Prediction:
    """Undo the standardisation of the target: ``value * std + mean``, variances times std²."""
    if scale is None or prediction.task != "regression":
        return prediction
    centre, std = (torch.as_tensor(s).to(prediction.mean) for s in scale)
    samples = prediction.samples
    if samples is not None:
        samples = select_output(samples)
        if isinstance(samples, Gaussian):
            samples = Gaussian(samples.mean * std + centre, samples.variance * std**2)
        elif isinstance(samples, Quantiles):
            ends = [end * std + centre for end in samples[:3]]
            samples = Quantiles(ends[0], ends[1], ends[2], samples.level)
        else:
            samples = samples * std + centre
    return replace(
        prediction,
        mean=prediction.mean * std + centre,
        total=prediction.total * std**2,
        aleatoric=prediction.aleatoric * std**2,
        epistemic=prediction.epistemic * std**2,
        standard_error=prediction.standard_error * std,
        samples=samples,
        lower=None if prediction.lower is None else prediction.lower * std + centre,
        upper=None if prediction.upper is None else prediction.upper * std + centre,
    )


def _mixture_nll(samples: Any, counted: Tensor, target: Tensor) -> Tensor:
    output = select_output(samples)
    assert isinstance(output, Gaussian)
    flat = [part.float().flatten(1)[:, counted] for part in output]
    return -gaussian_mixture_log_likelihood(flat[0], flat[1], target)


def _flattened(mean: Tensor, task: str, class_dim: int) -> Tensor:
    if task != "classification":
        return mean.reshape(-1)
    return mean.movedim(class_dim, -1).reshape(-1, mean.shape[class_dim])


def _rows_of(values: Tensor, fresh: Tensor) -> Tensor:
    """Which entries along the first axis belong to rows that count (tokens may be flattened)."""
    return fresh.repeat_interleave(len(values) // len(fresh))


def _is_dense(seen: Observation) -> bool:
    """Pixels or tokens: too many to keep a row each."""
    return seen.sampled.mean.ndim > 2 or len(seen.sampled.mean) != seen.rows


def _known_classes(target: Tensor, classes: int) -> Tensor:
    """Leave out negative classes (``ignore_index``), and say so for those beyond the last one."""
    beyond = int((target >= classes).sum())
    if beyond:
        warnings.warn(
            f"{beyond} targets of a batch are not below the number of classes ({classes}) and are "
            "left out of the uncertainty scores.",
            StableLightningWarning,
            stacklevel=2,
        )
    return (target >= 0) & (target < classes)


def _rows(seen: Observation, index: Tensor, fresh: Tensor) -> dict[str, Tensor]:
    columns: dict[str, Tensor | None] = {
        "index": index.to(fresh.device),
        "target": seen.target,
        "mean": seen.sampled.mean,
        "total": seen.sampled.total,
        "aleatoric": seen.sampled.aleatoric,
        "epistemic": seen.sampled.epistemic,
        "variation_ratio": seen.sampled.variation_ratio,
        "deterministic": seen.plain.mean,
        **_corrected_columns(seen),
    }
    single = seen.sampled.task == "regression"
    return {
        name: (column.squeeze(1) if single and column.shape[1:] == (1,) else column)[fresh].cpu()
        for name, column in columns.items()
        if column is not None
    }


def _below(prediction: Prediction, target: Tensor | None) -> Tensor | None:
    """The probability of values below each target, where it is not that of a Gaussian."""
    if prediction.quantiles is None or target is None:
        return None
    errors = (target.double() - prediction.mean.double()) / prediction.std.double()
    return level_of_errors(errors, *torch.tensor(prediction.quantiles, dtype=torch.float64).T)


def _corrected_columns(seen: Observation) -> dict[str, Tensor | None]:
    columns: dict[str, Tensor | None] = {}
    if seen.calibrated is not None:
        columns["calibrated"] = seen.calibrated.mean
        for name in ("total", "aleatoric", "epistemic"):
            columns[f"{name}_calibrated"] = getattr(seen.calibrated, name)
        columns["below_calibrated"] = _below(seen.calibrated, seen.target)
    for name in ("sets", "lower", "upper", "answered", "reason"):
        columns[name] = getattr(seen.last, name)
    return columns
