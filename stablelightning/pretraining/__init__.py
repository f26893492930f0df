"""Pretraining without labels: modules that leave a backbone for fine-tuning."""

from stablelightning.pretraining.autoencoder import DenoisingAutoencoder
from stablelightning.pretraining.auxiliary import AuxiliaryTask, RotationPrediction
from stablelightning.pretraining.base import Pretraining
from stablelightning.pretraining.contrastive import SimCLR
from stablelightning.pretraining.orientations import OrientedClasses

__all__ = [
    "AuxiliaryTask",
    "DenoisingAutoencoder",
    "OrientedClasses",
    "Pretraining",
    "RotationPrediction",
    "SimCLR",
]
