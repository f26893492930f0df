"""The finding that stops all others: a number that is not finite."""

from collections.abc import Iterator

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination


def non_finite(examination: Examination) -> Iterator[Finding]:
    """The first module and operation that made NaN or an infinity."""
    fault = examination.measurement.fault
    if fault is None:
        return
    number = "an infinity" if fault.infinite else "NaN"
    if fault.operation == "input":
        message = f"the batch itself holds {number}."
        remedy = "find the rows in the data, and drop or impute them."
    elif fault.operation == "parameter":
        place = f"{fault.module}.{fault.name}" if fault.module else fault.name
        message = f"{place} holds {number} before the first step."
        remedy = "load or initialize it anew; a broken checkpoint looks like this."
    elif fault.operation.startswith("backward of"):
        message = (
            f"the forward is finite, and the {fault.operation} in {_place(examination)} is the "
            f"first to make {number} of a gradient."
        )
        remedy = (
            "square roots, norms and logarithms have no slope at zero: add a small number inside, "
            "or keep zero out of them."
        )
    else:
        message = f"the first {number} is made by {fault.operation} in {_place(examination)}."
        remedy = (
            "look at the range of its input: logarithms and divisions need an epsilon, "
            "exponentials a bound, and half precision overflows at 65504."
        )
    modules = (fault.module,) if fault.module else ()
    yield Finding(
        "non-finite",
        "error",
        fault.module,
        message,
        {"loss": examination.measurement.loss, "infinite": float(fault.infinite)},
        remedy,
        "initialize" if fault.operation == "parameter" else None,
        modules=modules,
    )


def _place(examination: Examination) -> str:
    fault = examination.measurement.fault
    return (fault.module if fault else "") or type(examination.model).__name__
