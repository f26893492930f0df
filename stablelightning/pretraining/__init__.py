"""Pretraining without labels: modules that leave a backbone for fine-tuning."""

from stablelightning.pretraining.base import Pretraining
from stablelightning.pretraining.contrastive import SimCLR

__all__ = ["Pretraining", "SimCLR"]
