"""Two classes with 100 images each, for a network that knows the other eight.

The pairs are the classes in their order, two by two, so that each class is in one: nobody chose
them. One network of each pair serves all seeds: what differs between seeds is which 100 images of
a class there are, the head's weights and the order of the batches.
"""

import time
from pathlib import Path
from typing import Any

import lightning as L

from stablelightning.model.backbone_file import save_backbone
from stablelightning.model.head import remove_head
from stablelightning.model.weights_file import load_weights
from tests.benchmarks.transfer.arms import SCRATCH, compare, cut, table_of
from tests.benchmarks.transfer.cifar import CifarData, folder_of, images
from tests.benchmarks.transfer.paired import interval
from tests.benchmarks.transfer.record import Job, Run
from tests.benchmarks.transfer.training import (
    classifier,
    colour_network,
    error,
    trainer,
)

TITLE = "Two classes with 100 images each, after the eight others"
NEEDS_ROOT = True

CLASSES = 10
PAIRS = tuple((first, first + 1) for first in range(0, CLASSES, 2))

#: Training images of each of the two classes.
LABELS = 100

#: Share of scratch's error that is asked to go.
BOUND = 0.4

#: Of the pretraining: epochs, images of a batch, learning rate.
PRETRAINING = (16, 128, 4e-3)

#: Passes over the labelled images, in epochs of ten passes.
EPOCHS, COPIES, BATCH = 5, 10, 40

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
