"""Pretraining without labels: modules that leave a backbone for fine-tuning."""

from stablelightning.pretraining.base import Pretraining

__all__ = ["Pretraining"]
