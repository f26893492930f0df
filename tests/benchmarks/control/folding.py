"""Folded against unfolded networks: latency per batch size, outputs, and what is folded at all."""

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

import stablelightning as sl
from stablelightning.model.trace import watch

TITLE = "Batch norm folded into the layers beside it"

_SIDE = 64
_BATCHES = (1, 8, 32)
_SAMPLES = 20
#: For each batch size of each network.
_SECONDS, _FEWEST = 12.0, 9

_TIMED: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
}
_COVERED: dict[str, Callable[[], nn.Module]] = {
    **_TIMED,
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(),
    "densenet121": lambda: torchvision.models.densenet121(),
    "googlenet": lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False),
    "shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(),
    "timm efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "timm resnetv2_50": lambda: timm.create_model("resnetv2_50"),
    "dcgan generator": lambda: _generator(),
}


def _generator() -> nn.Module:
    """Transposed convolutions and norms, from 64 pixels up to 256."""
    widths = (3, 32, 16)
    layers = [
        module
        for inputs, outputs in pairwise(widths)
        for module in (
            nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )
    ]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1), nn.Tanh())


def _settled(model: nn.Module) -> nn.Module:
    """In eval, with statistics as after training: other than those of the start."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def _with_dropout(model: nn.Module) -> nn.Module:
    """Dropout before the head where there is none, as Monte Carlo dropout needs it."""
    if not any(isinstance(module, nn.Dropout) for module in model.modules()):
        sl.add_dropout(model, p=0.1)
    return model


def _difference(model: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    expected = model(x)
    return float((other(x) - expected).abs().max() / expected.abs().max())


def _norms(model: nn.Module, x: torch.Tensor) -> int:
    """Batch norms that run, whether a module calls them or a function."""
    operations = watch(model, x).operations
    return sum(o.kind == "norm" and "batch_norm" in o.name for o in operations)


def _turns(contenders: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Processor seconds of every contender in every round, in turns.

    Of one thread these are what a machine that does nothing else would take.
    """
    for call in contenders.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    end, number = time.monotonic() + _SECONDS, 0
    while time.monotonic() < end or number < _FEWEST:
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.process_time()
            contenders[name]()
            times[name].append(time.process_time() - start)
        number += 1
    return times


def _ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    pairs = zip(times[name], times[to], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _covered(name: str) -> dict[str, Any]:
    """How many norms are folded, by us and by torch.fx, and whether outputs stay."""
    model = _settled(_COVERED[name]())
    x, other = torch.randn(2, 3, _SIDE, _SIDE), torch.randn(3, 3, _SIDE, _SIDE)
    ours = copy.deepcopy(model)
    sl.fold_batch_norm(ours, x)
    row: dict[str, Any] = {
        "network": name,
        "norms": (norms := _norms(model, x)),
        "ours": norms - _norms(ours, x),
        "ours differs": _difference(model, ours, other),
    }
    try:
        theirs = fuse(copy.deepcopy(model))
        row["fx"] = norms - _norms(theirs, x)
        row["fx differs"] = _difference(model, theirs, other)
    except Exception as error:
        row["fx"] = type(error).__name__
        row["fx differs"] = None
    return row


def _timed(name: str, batch: int) -> dict[str, Any]:
    """Medians and paired ratios at one batch size."""
    model = _with_dropout(_settled(_TIMED[name]()))
    x = torch.randn(batch, 3, _SIDE, _SIDE)
    folded = copy.deepcopy(model)
    sl.fold_batch_norm(folded, x)
    models = {"": model, " folded": folded, " fx": fuse(copy.deepcopy(model))}

    def sampled(made: nn.Module) -> Callable[[], Any]:
        return lambda: sl.mc_dropout(made, x, samples=_SAMPLES, task="classification")

    contenders: dict[str, Callable[[], Any]] = {}
    for suffix, made in models.items():
        contenders[f"pass{suffix}"] = lambda made=made: made(x)
        contenders[f"mc{suffix}"] = sampled(made)
    times = _turns(contenders)
    return {
        "network": name,
        "batch": batch,
        "ms": {key: statistics.median(values) * 1e3 for key, values in times.items()},
        "pass / folded": _ratio(times, "pass", "pass folded"),
        "pass / fx": _ratio(times, "pass", "pass fx"),
        "mc / folded": _ratio(times, "mc", "mc folded"),
        "rounds": len(times["pass"]),
    }


def measure(seeds: int = 5) -> dict[str, Any]:
    """Measure; one seed is enough, as no number here depends on the weights."""
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        covered = [_covered(name) for name in _COVERED]
        timed = [_timed(name, batch) for name in _TIMED for batch in _BATCHES]
    return {"covered": covered, "timed": timed, "threads": torch.get_num_threads()}


def table(result: dict[str, Any]) -> str:
    """The two tables."""
    lines = [
        f"one pass and {_SAMPLES} samples at {_SIDE} px, {result['threads']} thread(s), in ms of "
        "processor time; ratios are medians over paired rounds",
        f"{'network':16}{'batch':>6}{'pass':>9}{'folded':>9}{'x fast':>8}{'fx fuse':>9}"
        f"{'x fast':>8}{'mc':>9}{'folded':>9}{'x fast':>8}",
    ]
    for row in result["timed"]:
        ms = row["ms"]
        lines.append(
            f"{row['network']:16}{row['batch']:6}{ms['pass']:9.2f}{ms['pass folded']:9.2f}"
            f"{row['pass / folded']:8.2f}{ms['pass fx']:9.2f}{row['pass / fx']:8.2f}"
            f"{ms['mc']:9.2f}{ms['mc folded']:9.2f}{row['mc / folded']:8.2f}"
        )
    lines += ["", f"{'batch norms folded':24}{'of':>5}{'ours':>6}{'differs':>10}"
              f"{'torch.fx fuse':>16}{'differs':>10}"]  # fmt: skip
    for row in result["covered"]:
        differs = "-" if row["fx differs"] is None else f"{row['fx differs']:.1e}"
        lines.append(
            f"{row['network']:24}{row['norms']:5}{row['ours']:6}{row['ours differs']:10.1e}"
            f"{row['fx']!s:>16}{differs:>10}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure()))
