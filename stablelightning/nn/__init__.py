"""Floor 1: modules."""

from stablelightning.nn.heads import Gaussian, GaussianHead
from stablelightning.nn.networks import MLP, ConvNet

__all__ = ["MLP", "ConvNet", "Gaussian", "GaussianHead"]
