"""What a denoising autoencoder makes of noisy digits that it has not seen, without any labels."""

import lightning as L
import torch
from _digits import digits, split
from matplotlib.figure import Figure

from stablelightning.nn import MLP
from stablelightning.pretraining import DenoisingAutoencoder
from stablelightning.report.pretraining import reconstructions

_EPOCHS = 25


def draw() -> Figure:
    """The picture that a run of the autoencoder leaves."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        module = DenoisingAutoencoder(
            MLP(64, 8, hidden=[256], dropout=0.0),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=_EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, digits().train_dataloader())
        with torch.no_grad():
            module.eval()
            images = split("test")[0][:8]
            noisy = module.noise(images)
            return reconstructions(images, noisy, module.reconstruct(noisy), channels=1)
