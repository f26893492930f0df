"""What people use today: written by hand, or from a package."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def dropout_on(model: nn.Module) -> nn.Module:
    """Eval, with every dropout live: what a hand-written loop does first."""
    model.eval()
    for module in model.modules():
        named = isinstance(module, nn.modules.dropout._DropoutNd) or "Drop" in type(module).__name__
        fused = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
        timm_attention = getattr(getattr(module, "attn_drop", None), "p", 0) > 0
        if named or fused or timm_attention:
            module.train()
    return model


@torch.no_grad()
def plain_loop(model: nn.Module, x: Tensor, samples: int) -> Tensor:
    """The whole model once per sample."""
    dropout_on(model)
    return torch.stack([model(x) for _ in range(samples)])


@torch.no_grad()
def batch_repeat(model: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Every row ``samples`` times in one batch."""
    dropout_on(model)
    output: Tensor = model(x.repeat(samples, *(1,) * (x.ndim - 1)))
    return output.view(samples, len(x), *output.shape[1:])


@torch.no_grad()
def feature_cache(prefix: nn.Module, suffix: nn.Module, x: Tensor, samples: int) -> Tensor:
    """Features once, the rest once per sample: what a careful person writes for one model."""
    prefix.eval()
    dropout_on(suffix)
    features = prefix(x)
    return torch.stack([suffix(features) for _ in range(samples)])


def torch_uncertainty(model: nn.Module, x: Tensor, samples: int) -> Callable[[], Any] | None:
    """torch-uncertainty's ``mc_dropout`` with its defaults; ``None`` where it is not installed."""
    try:
        from torch_uncertainty.methods import mc_dropout
    except ImportError:
        return None
    try:
        wrapped = mc_dropout(model, num_estimators=samples).eval()
    except ValueError:  # it knows nn.Dropout modules only
        return None
    return torch.no_grad()(lambda: wrapped(x))


def baal(model: nn.Module, x: Tensor, samples: int) -> Callable[[], Any] | None:
    """baal's dropout patch with its caching module; ``None`` where it is not installed."""
    try:
        from baal.bayesian.caching_utils import patch_module as cache
        from baal.bayesian.dropout import patch_module as dropout
    except ImportError:
        return None
    import copy

    patched = cache(dropout(copy.deepcopy(model).eval(), inplace=True), inplace=True).eval()
    return torch.no_grad()(lambda: torch.stack([patched(x) for _ in range(samples)]))
