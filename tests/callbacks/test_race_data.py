"""A race's batches are training's own, and training does not miss them."""

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.callbacks.race_data import race_data
from stablelightning.errors import DataError
from tests.callbacks.modules import Plain, data, loader, quiet_trainer
from tests.contracts.models import Resumable


class Reads(L.Callback):
    """Reads the batches of a race, and notes those of training."""

    def __init__(self, steps=6):
        self.steps, self.seen = steps, []

    def setup(self, trainer, pl_module, stage):
        if self.steps:
            self.race = race_data(trainer, pl_module, self.steps)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        parts = batch.values() if isinstance(batch, dict) else [batch]
        self.seen.append(torch.cat([part[0].flatten() for part in parts]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data(24))


class Several(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(next(iter(batch.values())), batch_idx)


LOADERS = {
    "in order": lambda: loader(24, batch_size=4),
    "shuffled": lambda: DataLoader(data(24), batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(
        data(24), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "workers": lambda: DataLoader(data(24), batch_size=4, shuffle=True, num_workers=1),
    "resumable": lambda: Resumable(DataLoader(data(24), batch_size=4)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_training_sees_the_same_batches(kind):
    seen = []
    for steps in (0, 4):
        torch.manual_seed(0)
        reads = Reads(steps)
        quiet_trainer(reads, max_epochs=2).fit(Plain(), LOADERS[kind]())
        seen.append(reads.seen)
    assert len(seen[0]) == 12
    assert all(map(torch.equal, *seen))


def test_several_loaders_at_once():
    reads = Reads()
    both = CombinedLoader({"a": loader(24, batch_size=4), "b": loader(8, batch_size=2)})
    quiet_trainer(reads, max_epochs=1).fit(Several(), both)
    assert set(reads.race.batches[0]) == {"a", "b"}
    assert len(reads.race.batches) + len(reads.race.held_out) == 4


@pytest.mark.parametrize(
    ("rows", "learned", "held_out"), [(24, 5, 1), (22, 4, 1), (40, 8, 2), (8, 1, 1), (4, 1, 1)]
)
def test_some_full_batches_are_held_out(rows, learned, held_out):
    reads = Reads(steps=20)
    quiet_trainer(reads, max_epochs=1).fit(Plain(), loader(rows, batch_size=4))
    race = reads.race
    assert (len(race.batches), len(race.held_out)) == (learned, held_out)
    assert {len(x) for x, _ in (*race.batches, *race.held_out)} == {4}
    if rows > 4:
        assert not any(x is y for x in race.batches for y in race.held_out)


def test_no_more_batches_than_the_race_needs():
    reads = Reads(steps=3)
    quiet_trainer(reads, max_epochs=1).fit(Plain(), loader(200, batch_size=4))
    assert len(reads.race.batches) + len(reads.race.held_out) == 7


def test_data_that_is_read_once_is_left_for_training():
    generator = iter(list(loader(24, batch_size=4)))
    with pytest.raises(DataError, match="can be read only once"):
        quiet_trainer(Reads(), max_epochs=1).fit(Plain(), generator)
    assert len(list(generator)) == 6
