"""What a run tells of the rows that it answered, and why it did not answer the others."""

import lightning as L
import torch
from torch import Tensor

from stablelightning.callbacks.abstain import AbstainWhenUnsure
from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.cli.observe import ObserveUnknown
from stablelightning.cli.sections import callbacks_of
from stablelightning.functional.abstain import REASONS
from stablelightning.model.abstain import Thresholds
from stablelightning.report.columns import is_classification
from stablelightning.report.section import Section

Rows = dict[str, Tensor]

_WRONG, _ROOT = "wrong (%)", "RMSE"


def decided_on(trainer: L.Trainer) -> Thresholds | None:
    """The thresholds by which a Trainer decides, if it does.

    Args:
        trainer: with its callbacks.
    """
    found = (decider.thresholds for decider in callbacks_of(trainer, AbstainWhenUnsure))
    return next((thresholds for thresholds in found if thresholds is not None), None)


def decisions(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """How many test rows were answered, at which risk, and what kept the others from it.

    Args:
        trainer: after ``test``.
        model: that was tested.
    """
    thresholds = decided_on(trainer)
    reasons = [decider.unfitted for decider in callbacks_of(trainer, AbstainWhenUnsure)]
    if thresholds is None and any(reasons):
        why = next(reason for reason in reasons if reason)
        lead = f"every row is answered, since no threshold could be chosen: {why}"
        return Section("decisions", "Decisions", lead)
    rows: Rows = next((e.rows for e in callbacks_of(trainer, EstimateUncertainty)), {})
    if thresholds is None or "answered" not in rows:
        return None
    loss, what = _loss(rows)
    unknown = _unknown(trainer)
    groups = [(name, rows["reason"] == number) for number, name in enumerate(REASONS)]
    table = [_row(name, chosen, loss, what) for name, chosen in groups]
    table.append(_row("all", torch.ones_like(rows["answered"]), loss, what))
    empty: list[object] = [] if loss is None else [None]
    table += [
        [f"answered of {name.replace('_', ' ')}", None, 100 * share, *empty]
        for name, share in unknown.items()
    ]
    numbers = {
        "decide/threshold_total": thresholds.total,
        "decide/threshold_epistemic": thresholds.epistemic,
        **{f"decide/{_key(name)}": float(chosen.double().mean()) for name, chosen in groups[1:]},
        **{f"ood/{name}/answered": share for name, share in unknown.items()},
    }
    columns = ["", "rows", "share (%)", *([] if loss is None else [what])]
    lead, notes = _lead(rows["answered"], loss, what), _notes(thresholds, rows["answered"])
    return Section("decisions", "Decisions", lead, columns, table, notes=notes, numbers=numbers)


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _lead(answered: Tensor, loss: Tensor | None, what: str) -> str:
    share = 100 * float(answered.double().mean())
    lead = f"{share:.3g} % of {len(answered):,} test rows are answered"
    if loss is None or not bool(answered.any()):
        return lead
    some, everybody = (_risk(values, what) for values in (loss[answered], loss))
    if what == _ROOT:
        return f"{lead}, with an {what} of {some:.3g} instead of {everybody:.3g}"
    return f"{lead}; of the answers {some:.3g} % are wrong, instead of {everybody:.3g} %"


def _unknown(trainer: L.Trainer) -> dict[str, float]:
    """The share of each out-of-distribution set that is answered all the same."""
    seen: dict[str, Rows] = next((o.rows for o in callbacks_of(trainer, ObserveUnknown)), {})
    return {
        name: float(rows["answered"].double().mean())
        for name, rows in seen.items()
        if "answered" in rows
    }


def _notes(thresholds: Thresholds, answered: Tensor) -> list[str]:
    notes = []
    if thresholds.coverage is not None:
        notes.append(
            f"on validation rows {100 * thresholds.coverage:.3g} % were answered, at a risk of "
            f"{thresholds.risk:.3g}"
        )
    if thresholds.bound is not None:
        notes.append(f"the risk of later rows was promised to stay below {thresholds.bound:.3g}")
    if not bool(answered.any()):
        notes.append("no test row meets the thresholds: allow a larger risk, or look at the data")
    return notes


def _loss(rows: Rows) -> tuple[Tensor | None, str]:
    """What each answer costs, and what the mean of that is called."""
    target = rows.get("target")
    mean = rows.get("calibrated", rows["mean"])
    if target is None:
        return None, ""
    if is_classification(rows):
        return (mean.argmax(1) != target).double(), _WRONG
    if mean.shape != target.shape or not target.is_floating_point():
        return None, ""
    return (mean - target).double().square().reshape(len(mean), -1).mean(1), _ROOT


def _risk(loss: Tensor, what: str) -> float:
    mean = float(loss.mean())
    return mean**0.5 if what == _ROOT else 100 * mean


def _row(name: str, chosen: Tensor, loss: Tensor | None, what: str) -> list[object]:
    number = int(chosen.sum())
    row: list[object] = [name, number, 100 * number / max(len(chosen), 1)]
    if loss is not None:
        row.append(_risk(loss[chosen], what) if number else None)
    return row
