"""The denoising autoencoder: rows, images, tokens, any network; and that it learns."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.nn import MLP, ConvDecoder, ConvNet, DenseDecoder, MaskingNoise, RecurrentNet
from stablelightning.pretraining import DenoisingAutoencoder


def resnet18():
    return pytest.importorskip("torchvision.models").resnet18(num_classes=7)


def vit():
    return pytest.importorskip("timm").create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=7
    )


@pytest.mark.parametrize(
    ("make", "shape", "decoder"),
    [
        (lambda: MLP(6, 2, hidden=[5]), (6,), DenseDecoder),
        (lambda: MLP(64, 2, hidden=[5]), (1, 8, 8), ConvDecoder),
        (lambda: MLP(6, variance=True, hidden=[5]), (6,), DenseDecoder),
        (lambda: RecurrentNet(2, 1, hidden=[5], dropout=0.0), (9, 2), DenseDecoder),
        (lambda: ConvNet(3, 2, channels=[8]), (3, 9, 14), ConvDecoder),
        (resnet18, (3, 32, 32), ConvDecoder),
        (vit, (3, 32, 32), ConvDecoder),
    ],
    ids=["rows", "flattened", "gaussian", "sequence", "images", "resnet18", "vit"],
)
def test_any_network_is_given_a_decoder_to_its_inputs_shape(make, shape, decoder):
    module = DenoisingAutoencoder(make())
    inputs = torch.randn(4, *shape)
    loss = module.loss(inputs)
    loss.backward()
    assert type(module.decoder) is decoder
    assert module.reconstruct(inputs).shape == inputs.shape
    assert all(p.grad is not None for p in module.parameters())


def test_maps_are_decoded_where_they_are():
    module = DenoisingAutoencoder(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU()))
    module.ready(torch.randn(2, 1, 8, 8))
    assert isinstance(module.decoder.first, nn.Conv2d)


def test_tokens_are_averaged_before_they_are_decoded():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 5)

        def forward(self, images):
            return self.layer(images.flatten(1))[:, None].repeat(1, 7, 1)

    module = DenoisingAutoencoder(Tokens(), keep_head=True)
    assert torch.isfinite(module.loss(torch.randn(3, 1, 8, 8)))
    assert module.decoder.first[1].in_features == 5


def test_noise_and_decoder_of_ones_own():
    class Zero(nn.Module):
        def forward(self, inputs):
            return inputs * 0

    module = DenoisingAutoencoder(
        MLP(6, 2, hidden=[5], dropout=0.0),
        noise=Zero(),
        decoder=lambda features, rows: DenseDecoder(features, rows, hidden=[]),
    )
    rows = torch.randn(8, 6)
    torch.testing.assert_close(
        module.loss(rows), (module.reconstruct(torch.zeros_like(rows)) - rows).square().mean()
    )
    assert len(module.decoder.layers) == 1


def trained(net, inputs, **settings):
    torch.manual_seed(0)
    module = DenoisingAutoencoder(net, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), **settings)
    data = DataLoader(TensorDataset(inputs), batch_size=64, shuffle=True)
    run = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=30,
        devices=1,
    )
    run.fit(module, data, DataLoader(TensorDataset(inputs), batch_size=50))
    return module, run


def test_what_is_hidden_is_inferred_from_what_is_not():
    torch.manual_seed(0)
    rows = torch.randn(256, 1).repeat(1, 8)  # every value tells all others
    module, run = trained(MLP(8, 2, hidden=[16], dropout=0.0), rows, noise=MaskingNoise(0.5))
    masked = rows.clone()
    masked[:, ::2] = 0
    with torch.no_grad():
        module.eval()
        error = (module.reconstruct(masked) - rows).square().mean() / rows.var()
    assert error < 0.1
    assert run.callback_metrics["val/explained_variance"] > 0.8


def test_explained_variance_is_that_of_all_rows_at_once():
    rows = torch.randn(70, 3) * torch.tensor([1.0, 2.0, 0.1])
    module, run = trained(MLP(3, 2, hidden=[4], dropout=0.0), rows, noise=nn.Identity())
    with torch.no_grad():
        module.eval()
        left = rows - module.reconstruct(rows)
    share = 1 - left.var(0).sum() / rows.var(0).sum()
    torch.testing.assert_close(run.callback_metrics["val/explained_variance"], share)


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (2, 8, 8)], ids=["rows", "grey", "two"])
def test_the_picture_shows_inputs_noise_and_reconstruction(shape):
    net = MLP(torch.Size(shape).numel(), 2, hidden=[4])
    module = DenoisingAutoencoder(net)
    inputs = torch.randn(5, *shape)
    module.ready(inputs)
    with torch.no_grad():
        figure = module.picture(inputs)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["input", "corrupted", "reconstructed"]
