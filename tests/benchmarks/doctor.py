"""The doctor against sick models, mutants and healthy models, and what a diagnosis costs.

    python -m tests.benchmarks.doctor [--mutants 200] [--seed 0] [--json FILE] [--only PART ...]

Seeds 0 to 199 are for development: rules may be mended on what those mutants show. The published
run takes ``--seed 10000``, which nobody looks at while mending; from there on it also draws the
sick and the healthy models anew, and adds healthy networks that are shown in no other run.

A planted fault counts as found if one of the first two findings has a right code and, where the
fault has a place, names that place. A code's precision is over the models on which it was said
first, healthy ones included, as a warning or an error.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.timing import median, paired, ratio
from tests.model.zoo.healthy import HEALTHY, HEALTHY_HELD_OUT
from tests.model.zoo.mutants import HELD_OUT, mutant
from tests.model.zoo.patients import Case, Patient, is_right, made
from tests.model.zoo.sick import SICK

#: Findings among which the planted fault must be.
FIRST = 2
#: Shares and counts that the run must hold.
LEAST_FOUND = 0.95
MOST_ERRORS_ON_HEALTHY = 0
MOST_STEPS = 3.0
#: Steps shorter than this are Python's more than the model's, as a diagnosis of their models is:
#: those are told, beside the milliseconds for each layer.
SHORT_STEP = 0.05

PARTS = ("mutants", "sick", "healthy", "cost")


@dataclass
class Seen:
    """What the doctor said of one model, in plain types."""

    group: str
    name: str
    kind: str
    codes: tuple[str, ...]
    findings: list[tuple[str, str, str]]  # severity, code, module
    found: bool = False
    said: bool = False  # the right code anywhere, whatever the place
    detail: str = ""
    failure: str = ""
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)


def examine(case: Case, group: str, seed: int) -> Seen:
    """Diagnose one model; a crash is a result, not the end of the run."""
    from stablelightning.model.diagnose import diagnose

    seen = Seen(group, case.name, getattr(case, "kind", case.name), case.codes, [])
    seen.detail = getattr(case, "strength", "")
    patient = made(case, seed)
    start = time.perf_counter()
    try:
        torch.manual_seed(0)
        diagnosis = diagnose(
            patient.model, patient.batch, patient.loss, optimizer=patient.optimizer
        )
    except Exception as error:
        seen.failure = f"{type(error).__name__}: {error}"
        return seen
    seen.seconds = time.perf_counter() - start
    seen.findings = [(f.severity, f.code, f.module) for f in diagnosis.findings]
    seen.messages = [f.message for f in diagnosis.findings]
    seen.found = any(is_right(case, f) for f in diagnosis.findings[:FIRST])
    seen.said = any(f.code in case.codes for f in diagnosis.findings)
    return seen


def _job(job: tuple[str, int, int]) -> Seen:
    group, number, seed = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if group == "mutants":
        return examine(mutant(seed + number), group, seed)
    return examine((SICK if group == "sick" else _healthy(seed))[number], group, seed)


def _healthy(seed: int) -> list[Case]:
    return [*HEALTHY, *HEALTHY_HELD_OUT] if seed >= HELD_OUT else HEALTHY


def run(jobs: list[tuple[str, int, int]], processes: int) -> Iterator[Seen]:
    """Examine everything, in order."""
    if processes == 1:
        yield from map(_job, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_job, jobs, chunksize=4)


# ---- the tables ----------------------------------------------------------------------------------


def per_code(seen: list[Seen]) -> list[dict[str, Any]]:
    """Recall where a code is the planted one, precision where it was said first."""
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    said: Counter[str] = Counter()
    first: Counter[str] = Counter()
    right: Counter[str] = Counter()
    healthy: Counter[str] = Counter()
    for one in seen:
        loud = [code for severity, code, _ in one.findings if severity != "info"]
        if one.codes:
            planted[one.codes[0]] += 1
            found[one.codes[0]] += one.found
            said[one.codes[0]] += one.said
        else:
            healthy.update(set(loud))
        if loud:
            first[loud[0]] += 1
            right[loud[0]] += loud[0] in one.codes
    return [
        {
            "code": code,
            "planted": planted[code],
            "recall": _share(found[code], planted[code]),
            "said": _share(said[code], planted[code]),
            "first": first[code],
            "precision": _share(right[code], first[code]),
            "on healthy": healthy[code],
        }
        for code in sorted({*planted, *first, *healthy})
    ]


def per_kind(seen: list[Seen]) -> list[dict[str, Any]]:
    """Share found for each kind of mutation."""
    kinds = sorted({one.kind for one in seen})
    rows = []
    for kind in kinds:
        these = [one for one in seen if one.kind == kind]
        rows.append(
            {
                "kind": kind,
                "mutants": len(these),
                "found": _share(sum(o.found for o in these), len(these)),
                "said": _share(sum(o.said for o in these), len(these)),
            }
        )
    return rows


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def show(title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print a plain table."""
    rows = [{k: _text(v) for k, v in row.items()} for row in rows]
    if not rows:
        return
    widths = {k: max(len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    print(f"\n{title}")
    print("  ".join(k.ljust(w) for k, w in widths.items()))
    for row in rows:
        print("  ".join(row[k].ljust(w) for k, w in widths.items()))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _missed(seen: list[Seen]) -> list[dict[str, Any]]:
    return [
        {
            "model": one.name,
            "planted": one.codes[0] + (f" ({one.detail})" if one.detail else ""),
            "said": one.failure
            or "; ".join(f"{s} {c} {m}".strip() for s, c, m in one.findings[:3])
            or "nothing",
        }
        for one in seen
        if one.codes and not one.found
    ]


def _on_healthy(seen: list[Seen]) -> list[dict[str, Any]]:
    rows = [{"model": o.name, "said": o.failure} for o in seen if o.failure]
    return rows + [
        {"model": one.name, "said": f"{severity} {code} {module}: {message}"[:150]}
        for one in seen
        for (severity, code, module), message in zip(one.findings, one.messages, strict=True)
        if severity != "info"
    ]


# ---- cost ----------------------------------------------------------------------------------------

#: Healthy models, with the rows of a batch as people train them.
COSTED = {
    "mlp_he": 128,
    "residual_rows_40": 128,
    "conv_house": 64,
    "lstm": 64,
    "language_model": 32,
    "torchvision/resnet18": 32,
    "torchvision/convnext_tiny": 16,
    "timm/vit_tiny_patch16_224": 32,
}


def cost(seconds: float) -> list[dict[str, Any]]:
    """A diagnosis as a multiple of a training step on the same batch, paired."""
    from stablelightning.model.diagnose import diagnose

    torch.set_num_threads(1)
    rows = []
    for name, count in COSTED.items():
        patient = made(next(case for case in HEALTHY if case.name == name))
        patient.batch = _repeated(patient.batch, count)
        step = _training_step(patient)

        def diagnosis(patient: Patient = patient) -> Any:
            return diagnose(patient.model, patient.batch, patient.loss)

        times = paired(
            {"step": step, "diagnosis": diagnosis}, device=torch.device("cpu"), seconds=seconds
        )
        rows.append(
            {
                "model": name,
                "rows": count,
                "step ms": 1e3 * median(times["step"]),
                "diagnosis ms": 1e3 * median(times["diagnosis"]),
                "steps": ratio(times, "diagnosis", "step"),
                "ms a layer": 1e3 * median(times["diagnosis"]) / len(diagnosis().layers),
            }
        )
    return rows


def _repeated(batch: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    inputs, target = batch
    times = -(-count // len(inputs))
    more = torch.cat([inputs] * times)[:count]
    if more.is_floating_point():
        more = more + 0.05 * torch.randn_like(more)  # no two rows alike
    return more, torch.cat([target] * times)[:count]


def _training_step(patient: Patient) -> Callable[[], None]:
    optimizer = torch.optim.SGD(patient.model.parameters(), 1e-9)
    inputs, target = patient.batch
    loss = patient.loss or (F.mse_loss if target.is_floating_point() else F.cross_entropy)

    def step() -> None:
        optimizer.zero_grad()
        loss(patient.model(inputs), target).backward()
        optimizer.step()

    return step


# ---- the run -------------------------------------------------------------------------------------


def main() -> int:
    """Run, print, and fail where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help=f"published runs: {HELD_OUT}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, for each model")
    options = parser.parse_args()

    sizes = {"sick": len(SICK), "healthy": len(_healthy(options.seed)), "mutants": options.mutants}
    jobs = [
        (part, number, options.seed)
        for part, size in sizes.items()
        if part in options.only
        for number in range(size)
    ]
    seen = list(run(jobs, options.processes))
    groups = {part: [one for one in seen if one.group == part] for part in PARTS}

    show("Each code", per_code(seen))
    show("Each kind of mutation", per_kind(groups["mutants"]))
    show("Planted and not found", _missed(seen))
    show("Warnings and errors on healthy models", _on_healthy(groups["healthy"]))
    costs = cost(options.seconds) if "cost" in options.only else []
    show("Cost", costs)
    verdicts = _verdicts(groups, costs)
    show("Bounds", verdicts)
    if options.json:
        report = {
            "seed": options.seed,
            "torch": torch.__version__,
            "models": [asdict(one) for one in seen],
            "codes": per_code(seen),
            "kinds": per_kind(groups["mutants"]),
            "cost": costs,
            "bounds": verdicts,
        }
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0 if all(verdict["held"] for verdict in verdicts) else 1


def _verdicts(groups: dict[str, list[Seen]], costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    verdicts: list[dict[str, Any]] = []

    def add(what: str, value: float, bound: float, held: bool) -> None:
        verdicts.append({"what": what, "value": value, "bound": bound, "held": held})

    for part in ("mutants", "sick"):
        if these := groups[part]:
            share = sum(one.found for one in these) / len(these)
            add(f"{part} found among the first {FIRST}", share, LEAST_FOUND, share >= LEAST_FOUND)
    if healthy := groups["healthy"]:
        errors = sum(
            bool(one.failure) or any(severity == "error" for severity, *_ in one.findings)
            for one in healthy
        )
        add(
            f"healthy models with an error, of {len(healthy)}",
            errors,
            MOST_ERRORS_ON_HEALTHY,
            errors <= MOST_ERRORS_ON_HEALTHY,
        )
    if costs:
        worst = max(row["steps"] for row in costs if row["step ms"] >= 1e3 * SHORT_STEP)
        what = f"training steps a diagnosis costs, worst of those of {1e3 * SHORT_STEP:.0f} ms"
        add(what, worst, MOST_STEPS, worst <= MOST_STEPS)
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
