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
    elif fault.operation == "backward":
        message = f"the forward is finite, and the gradient at {fault.module} is not."
        remedy = (
            "look for square roots, norms and logarithms at zero behind it; "
            "torch.autograd.detect_anomaly() names the operation."
        )
    else:
        place = fault.module or type(examination.model).__name__
        message = f"the first {number} is made by {fault.operation} in {place}."
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
