"""The numbers a run leaves behind: ``summary.json`` and ``predictions.parquet``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

Summary = dict[str, float | None]


def ood_auroc(
    rows: Mapping[str, Tensor], out_rows: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """``ood/<set>/auroc_<score>`` for every set; ``rows`` are ``EstimateUncertainty.rows``."""
    raise NotImplementedError


def build_summary(*parts: Mapping[str, Any]) -> Summary:
    """Merge flat dictionaries to one, keys sorted, plain floats; what is not finite becomes None."""
    raise NotImplementedError


def write_summary(folder: str | Path, summary: Mapping[str, Any]) -> Path:
    """Write ``summary.json``."""
    raise NotImplementedError


def write_predictions(
    folder: str | Path, rows: Mapping[str, Tensor], *, name: str = "predictions.parquet"
) -> Path:
    """Write ``predictions.parquet``: index, target, mean_0.., deterministic_0.., uncertainties."""
    raise NotImplementedError


def most_uncertain_rows(
    rows: Mapping[str, Tensor],
    *,
    by: str = "epistemic",
    count: int = 50,
    class_names: Sequence[str] | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the ``count`` least certain test rows, for ``log_table``."""
    raise NotImplementedError
