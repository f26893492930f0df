"""Floor 1: modules."""

from stablelightning.nn.heads import Gaussian, GaussianHead

__all__ = ["Gaussian", "GaussianHead"]
