"""Diagnoses made by hand, with numbers that the tests know."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LayerSignal:
    name: str
    index: int
    std: float
    gradient_rms: float
    kind: str = "linear"
    activation: str = "relu"
    mean: float = 0.0
    cosine: float = 0.1
    dead: float = 0.0
    saturated: float = 0.0


@dataclass
class Finding:
    code: str
    severity: str
    module: str = ""
    message: str = "something was measured"
    evidence: dict[str, float] = field(default_factory=dict)
    remedy: str = "do something about it"
    cure: str | None = None


@dataclass
class Diagnosis:
    layers: list[LayerSignal]
    findings: list[Finding] = field(default_factory=list)
    forward_slope: float = 0.0
    gradient_slope: float = 0.0
    underflow: float = 0.0
    before: "Diagnosis | None" = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{len(self.layers)} layers, {[f.code for f in self.findings]}"


@dataclass
class Treatment:
    cure: str
    done: bool
    words: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnosis(depth: int = 50, *, decay: float = 1.0, prefix: str = "network.body.", **rest: Any):
    """Signal and gradient that change by ``decay`` at every layer, each in its own direction."""
    layers = [
        LayerSignal(f"{prefix}{2 * i}", i, decay**i, 1e-3 * decay ** (depth - 1 - i))
        for i in range(depth)
    ]
    slope = math.log(decay)
    return Diagnosis(layers, forward_slope=slope, gradient_slope=-slope, **rest)


def sick(depth: int = 50) -> Diagnosis:
    findings = [
        Finding("vanishing-gradient", "error", "network.body.0", evidence={"rms": 3.2e-12}),
        Finding("plain-depth", "warning", "network.body", cure="add-skips"),
        Finding("not-zero-centred", "info", "network.body.4"),
    ]
    return diagnosis(depth, decay=0.5, findings=findings)


def cured(depth: int = 50) -> Diagnosis:
    left = [Finding("not-zero-centred", "info", "network.body.4")]
    return diagnosis(depth, findings=left, before=sick(depth))


TREATMENTS = [
    Treatment("initialize", True, "50 layers were initialized anew"),
    Treatment("add-skips", False, "network.body was left: it has no layers of equal width"),
]
