"""Floor 1: modules."""

from stablelightning.nn.activations import (
    Maxout,
    MaxoutConv1d,
    MaxoutConv2d,
    MaxoutConv3d,
    MaxoutLinear,
    ScaledSigmoid,
)
from stablelightning.nn.blocks import ConvBlock, DenseBlock
from stablelightning.nn.heads import Gaussian, GaussianHead
from stablelightning.nn.highway import HighwayBlock
from stablelightning.nn.networks import MLP, ConvNet
from stablelightning.nn.residual import (
    ConvBottleneckBlock,
    ConvPreActivationBlock,
    ConvResidualBlock,
    DensePreActivationBlock,
    DenseResidualBlock,
    ScaledResidual,
)

__all__ = [
    "MLP",
    "ConvBlock",
    "ConvBottleneckBlock",
    "ConvNet",
    "ConvPreActivationBlock",
    "ConvResidualBlock",
    "DenseBlock",
    "DensePreActivationBlock",
    "DenseResidualBlock",
    "Gaussian",
    "GaussianHead",
    "HighwayBlock",
    "Maxout",
    "MaxoutConv1d",
    "MaxoutConv2d",
    "MaxoutConv3d",
    "MaxoutLinear",
    "ScaledResidual",
    "ScaledSigmoid",
]
