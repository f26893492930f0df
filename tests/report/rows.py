"""Rows as ``EstimateUncertainty`` keeps them, small and made by hand."""

import torch
from torch import Tensor


def classification_rows(count: int = 30, classes: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, classes, generator=generator).mul(2).softmax(1)
    plain = (mean.log() * 1.5).softmax(1)
    total = -(mean * mean.log()).sum(1)
    return {
        "index": torch.arange(count),
        "target": torch.randint(classes, (count,), generator=generator),
        "mean": mean,
        "total": total,
        "aleatoric": total * 0.7,
        "epistemic": total * 0.3,
        "variation_ratio": 1 - mean.amax(1),
        "deterministic": plain,
    }


def regression_rows(count: int = 30, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, generator=generator) * 50 + 100
    total = torch.rand(count, generator=generator) * 100 + 1
    noise = torch.randn(count, generator=generator)
    return {
        "index": torch.arange(count),
        "target": mean + total.sqrt() * noise,
        "mean": mean,
        "total": total,
        "aleatoric": total * 0.5,
        "epistemic": total * 0.5,
        "deterministic": mean + 1,
    }
