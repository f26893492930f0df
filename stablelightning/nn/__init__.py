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
from stablelightning.nn.corrupt import GaussianNoise, MaskingNoise, SaltAndPepperNoise
from stablelightning.nn.decoders import ConvDecoder, DenseDecoder
from stablelightning.nn.fusion import BalancedFusion
from stablelightning.nn.heads import Gaussian, GaussianHead, QuantileHead, Quantiles
from stablelightning.nn.highway import HighwayBlock
from stablelightning.nn.memory import LongMemoryLSTM
from stablelightning.nn.networks import MLP, ConvNet, DeepMLP, QuantileMLP, RecurrentNet
from stablelightning.nn.recurrent import LockedDropout, VariationalGRU, VariationalLSTM
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
    "BalancedFusion",
    "ConvBlock",
    "ConvBottleneckBlock",
    "ConvDecoder",
    "ConvNet",
    "ConvPreActivationBlock",
    "ConvResidualBlock",
    "DeepMLP",
    "DenseBlock",
    "DenseDecoder",
    "DensePreActivationBlock",
    "DenseResidualBlock",
    "Gaussian",
    "GaussianHead",
    "GaussianNoise",
    "HighwayBlock",
    "LockedDropout",
    "LongMemoryLSTM",
    "MaskingNoise",
    "Maxout",
    "MaxoutConv1d",
    "MaxoutConv2d",
    "MaxoutConv3d",
    "MaxoutLinear",
    "QuantileHead",
    "QuantileMLP",
    "Quantiles",
    "RecurrentNet",
    "SaltAndPepperNoise",
    "ScaledResidual",
    "ScaledSigmoid",
    "VariationalGRU",
    "VariationalLSTM",
]
