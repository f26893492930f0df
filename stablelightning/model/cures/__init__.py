"""Mechanical cures: what :func:`stablelightning.diagnose` finds is mended in the model, in place.

Each cure is one change, done whole or not at all: it is planned from a watched forward, performed,
and tried; a model whose structure cannot be changed safely is left, and that is said. No parameter
is replaced or renamed, so that optimizers and checkpoints keep what they hold, and no weight is
written unless the cure is to initialize.
"""

from stablelightning.model.cures.apply import CURES, apply_cures, repeat_treatments
from stablelightning.model.cures.treatment import (
    CHECKPOINT_KEY,
    Treatment,
    recorded_treatments,
)

__all__ = [
    "CHECKPOINT_KEY",
    "CURES",
    "Treatment",
    "apply_cures",
    "recorded_treatments",
    "repeat_treatments",
]
