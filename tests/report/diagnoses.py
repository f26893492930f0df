"""Diagnoses made by hand, with numbers that the tests know."""

import math
from typing import Any

from stablelightning.model.cures import Treatment
from stablelightning.model.diagnosis import Diagnosis, Finding, LayerSignal


def found(code: str, severity: Any, module: str = "", **rest: Any) -> Finding:
    said = {"message": "something was measured", "remedy": "do something about it", **rest}
    return Finding(code, severity, module, **said)


def diagnosis(
    depth: int = 50, *, decay: float = 1.0, prefix: str = "network.body.", **rest: Any
) -> Diagnosis:
    """Signal and gradient that change by ``decay`` at every layer, each in its own direction."""
    layers = [
        LayerSignal(
            f"{prefix}{2 * i}", i, i, "linear", "relu", mean=0.0, std=decay**i, cosine=0.1,
            gradient_rms=1e-3 * decay ** (depth - 1 - i), dead=0.0, saturated=math.nan,
        )
        for i in range(depth)
    ]  # fmt: skip
    slope = math.log(decay)
    rest = {"findings": [], "loss": 2.3, "underflow": 0.0, **rest}
    return Diagnosis(layers=layers, forward_slope=slope, gradient_slope=-slope, **rest)


def changed(made: Diagnosis, place: int, **values: float) -> None:
    """Give one layer other numbers."""
    made.layers[place] = LayerSignal(**{**vars(made.layers[place]), **values})


def sick(depth: int = 50) -> Diagnosis:
    findings = [
        found("vanishing-gradient", "error", "network.body.0", evidence={"rms": 3.2e-12}),
        found("plain-depth", "warning", "network.body", cure="add-skips"),
        found("not-zero-centred", "info", "network.body.4"),
    ]
    return diagnosis(depth, decay=0.5, findings=findings)


def cured(depth: int = 50) -> Diagnosis:
    left = [found("not-zero-centred", "info", "network.body.4")]
    treatments = [
        Treatment("initialize", True, "50 layers were initialized anew"),
        Treatment("add-skips", False, "network.body was left: its layers are of many widths"),
    ]
    return diagnosis(depth, findings=left, before=sick(depth), treatments=treatments)
