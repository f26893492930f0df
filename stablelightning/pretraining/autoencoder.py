"""A denoising autoencoder: the network learns what a corrupted input was."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.regression import ExplainedVariance

from stablelightning.nn.corrupt import GaussianNoise
from stablelightning.nn.decoders import ConvDecoder, DenseDecoder
from stablelightning.pretraining.base import Pretraining, pooled
from stablelightning.report.pretraining import reconstructions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Makes a decoder from the shape of a row of features and that of a row of inputs.
DecoderCallable = Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]


class DenoisingAutoencoder(Pretraining):
    """Pretrain a network by reconstructing inputs from corrupted ones, for rows and for images.

    The network reads a corrupted input, and a decoder behind its features makes the clean one
    again, by the mean squared error. What the noise took can only be known from what the data are
    like, and that is what the network learns. Rows and sequences get a perceptron as their decoder,
    images a convolutional one that grows them from the features.

    Logged beside the loss are ``val/explained_variance`` and ``test/explained_variance``: the share
    of the variance of the clean inputs that the reconstructions of corrupted ones explain, at most
    1; 0 is what the mean input alone would give.

    Args:
        network: as in :class:`~stablelightning.pretraining.Pretraining`: any that takes one float
            tensor.
        noise: corrupts a batch of inputs: :class:`~stablelightning.nn.GaussianNoise`,
            :class:`~stablelightning.nn.MaskingNoise`,
            :class:`~stablelightning.nn.SaltAndPepperNoise` or a module of your own; ``None`` for
            normal noise half as large as a standardised input.
        decoder: makes the decoder from the shapes of a row of features and of inputs; ``None``
            chooses :class:`~stablelightning.nn.ConvDecoder` for images and
            :class:`~stablelightning.nn.DenseDecoder` for the rest.
        **kwargs: ``keep_head`` of :class:`~stablelightning.pretraining.Pretraining`; ``optimizer``
            and the other settings of :class:`~stablelightning.mixin.StableMixin`.

    Raises:
        ModelError: ``network`` is not a plain module with weights.

    Source:
        Vincent, Larochelle, Lajoie, Bengio, Manzagol 2010, "Stacked denoising autoencoders",
        JMLR 11.

    Example:
        >>> import torch
        >>> from stablelightning.nn import ConvNet
        >>> module = DenoisingAutoencoder(ConvNet(1, 10, channels=[8]))
        >>> images = torch.randn(4, 1, 8, 8)
        >>> module.loss(images).shape, module.reconstruct(images).shape, module(images).shape
        (torch.Size([]), torch.Size([4, 1, 8, 8]), torch.Size([4, 8]))
    """

    objective = "autoencoder"

    def __init__(
        self,
        network: nn.Module,
        *,
        noise: nn.Module | None = None,
        decoder: DecoderCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.noise = GaussianNoise() if noise is None else noise
        self._make_decoder = decoder

    def build(self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...]) -> None:
        """Make the decoder."""
        usual: DecoderCallable = ConvDecoder if len(input_shape) == 3 else DenseDecoder
        shape = feature_shape[-1:] if len(feature_shape) == 2 else feature_shape  # of tokens
        self.decoder = (self._make_decoder or usual)(shape, input_shape)

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """What the network and the decoder make of inputs, corrupted or not; the same shape."""
        features = self.features(inputs)
        decoded: Tensor = self.decoder(pooled(features) if features.ndim == 3 else features)
        return decoded

    def loss(self, batch: Any) -> Tensor:
        """Mean squared error between the clean inputs and what is made of corrupted ones."""
        inputs = self.inputs(batch)
        reconstructed = self.reconstruct(self.noise(inputs))
        self.compare(reconstructed.flatten(1), inputs.flatten(1))
        return F.mse_loss(reconstructed, inputs)

    def task_metrics(self, output: Any) -> Mapping[str, Metric]:
        """The explained variance."""
        return {"explained_variance": ExplainedVariance(multioutput="variance_weighted")}

    def picture(self, batch: Any) -> "Figure | None":
        """Inputs, what the noise left of them, and what was made of that."""
        inputs = self.inputs(batch)
        noisy = self.noise(inputs)
        return reconstructions(inputs, noisy, self.reconstruct(noisy), channels=self.channels)
