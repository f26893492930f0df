"""What the doctor found: findings, worst first, and the signal at every layer."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from stablelightning.model.cures import Treatment

Severity = Literal["info", "warning", "error"]

#: Worst first.
_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, before training.

    Args:
        code: which rule found it, such as ``"dead-units"``; docs/doctor.md explains each.
        severity: ``"error"``: training will fail or has no chance; ``"warning"``: it will be slow,
            fragile or worse; ``"info"``: worth knowing.
        module: dotted name of the module where the fault sits (the first, of several); ``""`` where
            it is the inputs', the loss's, the optimizer's or the whole model's.
        message: one sentence with the numbers.
        evidence: those numbers, by name.
        remedy: what to do, in words.
        cure: name of the mechanical cure that ``Diagnosis.apply`` performs, ``None`` without one:
            ``"initialize"``, ``"swap-activation"``, ``"insert-norm"``, ``"add-skips"``,
            ``"drop-bias"``, ``"drop-dropout"``.
        cure_arguments: what the cure needs to know, such as ``{"activation": "leaky_relu"}``.
        modules: every module that the finding is about, in order of execution; ``module`` is the
            first.
    """

    code: str
    severity: Severity
    module: str
    message: str
    evidence: dict[str, float] = field(default_factory=dict)
    remedy: str = ""
    cure: str | None = None
    cure_arguments: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    def head(self) -> str:
        """What, how bad and where, in one line.

        Example:
            >>> Finding("dead-units", "error", "net.2", "", modules=("net.2", "net.4")).head()
            'error   dead-units at net.2 (and 1 more)'
        """
        place = f" at {self.module}" if self.module else ""
        more = f" (and {len(self.modules) - 1} more)" if len(self.modules) > 1 else ""
        return f"{self.severity:<7} {self.code}{place}{more}"

    def __str__(self) -> str:
        place = f" at {self.module}" if self.module else ""
        return f"{self.severity}: {self.code}{place}: {self.message} {self.remedy}".strip()


@dataclass(frozen=True)
class LayerSignal:
    """The signal at one layer, forward and backward.

    Args:
        name: dotted name of the layer.
        index: its place in the order of execution, from 0.
        depth: weight layers on the longest path before it.
        kind: ``"linear"``, ``"conv"``, ``"recurrent"``, ...
        activation: what consumes its output: ``"relu"``, ``"linear"``, ...
        mean: mean of its output over data and units.
        std: root mean square over its units of their standard deviation over the data.
        cosine: mean cosine between its outputs for different inputs, in [-1, 1]; NaN for one input.
        gradient_rms: root mean square of the loss's gradient at its output; NaN where none flows.
        dead: share of its units without derivative on every input, in [0, 1]; NaN if not known.
        saturated: share of its values where a bounded activation is flat; NaN if not known.
    """

    name: str
    index: int
    depth: int
    kind: str
    activation: str
    mean: float
    std: float
    cosine: float
    gradient_rms: float
    dead: float
    saturated: float


@dataclass
class Diagnosis:
    """What :func:`stablelightning.model.diagnose.diagnose` found; ``print`` shows it as a table.

    Args:
        findings: worst first; within a severity, causes before what follows from them.
        layers: the signal at each weight layer, in order of execution.
        loss: the value of the loss on the batch.
        forward_slope: slope of ln std over depth, per layer; 0 is isometric. NaN if not known.
        gradient_slope: slope of ln gradient over depth, per layer; positive where the gradient
            is larger at the end, so that it vanishes on the way back.
        underflow: share of the gradient's values that are zero in the dtype in use and would not
            be in a wider one, in [0, 1].
        notes: what could not be followed or done, in words.
        before: the diagnosis before :meth:`apply`, ``None`` for a first one.
        treatments: what became of each cure between ``before`` and this one.

    Example:
        >>> import stablelightning as sl, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = nn.init.constant_(net[0].weight, 0.5)
        >>> diagnosis = sl.diagnose(net, (torch.randn(32, 8), torch.randint(2, (32,))))
        >>> diagnosis.findings[0].code, diagnosis.findings[0].module
        ('symmetric-weights', '0')
    """

    findings: list[Finding]
    layers: list[LayerSignal]
    loss: float
    forward_slope: float
    gradient_slope: float
    underflow: float
    notes: list[str] = field(default_factory=list)
    before: "Diagnosis | None" = None
    treatments: "list[Treatment]" = field(default_factory=list)
    #: Performs the cures and diagnoses again; set by ``diagnose``, which knows the model.
    cure: "Callable[[Diagnosis], Diagnosis] | None" = field(default=None, repr=False)

    def apply(self) -> "Diagnosis":
        """Perform every mechanical cure on the model, in place, and diagnose it again.

        Returns:
            The new diagnosis, with this one as its ``before``; its ``treatments`` say what was
            done, and what could not be.
        """
        return self if self.cure is None else self.cure(self)

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding; ``None`` where there are none."""
        return self.findings[0].severity if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; ``before`` included."""
        return {
            "findings": [asdict(f) | {"modules": list(f.modules)} for f in self.findings],
            "layers": [asdict(layer) for layer in self.layers],
            "loss": self.loss,
            "forward_slope": self.forward_slope,
            "gradient_slope": self.gradient_slope,
            "underflow": self.underflow,
            "notes": list(self.notes),
            "treatments": [treatment.to_dict() for treatment in self.treatments],
            "before": None if self.before is None else self.before.to_dict(),
        }

    def __str__(self) -> str:
        lines = []
        if self.before is not None:
            heads = [f"  {finding.head()}" for finding in self.before.findings]
            done = [f"  {treatment}" for treatment in self.treatments]
            lines += ["before:", *(heads or ["  no findings"])]
            lines += ["cures:", *(done or ["  none"]), "after:"]
        lines += [_finding_lines(f) for f in self.findings] or ["no findings"]
        lines += ["", *_layer_table(self.layers), ""]
        lines.append(
            f"loss {self.loss:.4g}; slope per layer of ln std {_slope(self.forward_slope)}, of "
            f"ln gradient {_slope(self.gradient_slope)}; underflow {self.underflow:.1%}"
        )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def sorted_findings(findings: list[Finding]) -> list[Finding]:
    """Worst first; the order of equals, which is that of the rules (causes first), is kept.

    Example:
        >>> found = [Finding("a", "info", "", ""), Finding("b", "error", "", "")]
        >>> [f.code for f in sorted_findings(found)]
        ['b', 'a']
    """
    return sorted(findings, key=lambda f: _SEVERITIES.index(f.severity))


def _finding_lines(finding: Finding) -> str:
    return f"{finding.head()}\n        {finding.message}\n        remedy: {finding.remedy}"


def _layer_table(layers: list[LayerSignal]) -> list[str]:
    if not layers:
        return []
    width = max(5, *(len(layer.name) for layer in layers))
    reads = max(10, *(len(layer.activation) for layer in layers))
    head = (
        f"{'layer':<{width}}  {'activation':<{reads}} {'mean':>9} {'std':>9} {'cosine':>7} "
        f"{'gradient':>9} {'dead':>5} {'flat':>5}"
    )
    rows = [
        f"{s.name:<{width}}  {s.activation:<{reads}} {s.mean:>9.2g} {s.std:>9.2g} "
        f"{s.cosine:>7.3f} {s.gradient_rms:>9.2g} {_share(s.dead)} {_share(s.saturated)}"
        for s in layers
    ]
    return [head, "-" * len(head), *rows]


def _slope(value: float) -> str:
    return f"{value:+.3f}" if value == value else "unknown"  # too few layers, or none measured


def _share(value: float) -> str:
    return f"{value:>5.0%}" if value == value else "    -"
