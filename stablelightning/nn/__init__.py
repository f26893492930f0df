"""Floor 1: modules."""

from stablelightning.nn.activations import (
    Maxout,
    MaxoutConv1d,
    MaxoutConv2d,
    MaxoutConv3d,
    MaxoutLinear,
    ScaledSigmoid,
)
from stablelightning.nn.heads import Gaussian, GaussianHead
from stablelightning.nn.networks import MLP, ConvNet

__all__ = [
    "MLP",
    "ConvNet",
    "Gaussian",
    "GaussianHead",
    "Maxout",
    "MaxoutConv1d",
    "MaxoutConv2d",
    "MaxoutConv3d",
    "MaxoutLinear",
    "ScaledSigmoid",
]
