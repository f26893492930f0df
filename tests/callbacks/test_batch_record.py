"""Rows of the present batch, in loaders that do not know that they are watched."""

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from stablelightning.callbacks.batch_record import BatchRecord


class Numbered(Dataset):
    """Rows that hold their own number."""

    def __init__(self, number=22):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return torch.full((32,), float(index))


class Stream(IterableDataset):
    def __iter__(self):
        return (torch.full((32,), float(i)) for i in range(20))


class Watch(L.Callback):
    """Holds the record against what is in the batch."""

    def __init__(self, *, record=True):
        self.record = BatchRecord() if record else None
        self.told, self.true = [], []

    def setup(self, trainer, pl_module, stage):
        if self.record:
            self.record.attach(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        first = batch if isinstance(batch, torch.Tensor) else next(iter(batch.values()))
        self.true.append(first[:, 0].long().tolist())
        if self.record:
            self.told.append(self.record.rows(trainer, batch))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.record:
            assert self.record.rows(trainer, batch) == self.told[-1]

    def teardown(self, trainer, pl_module, stage):
        if self.record:
            self.record.detach()

    on_exception = teardown


class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        first = batch if isinstance(batch, torch.Tensor) else next(iter(batch.values()))
        return self.layer(first / 100).mean()


def fit(loader, *, record=True, epochs=2, **settings):
    watch = Watch(record=record)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **settings,
    )
    torch.manual_seed(0)
    trainer.fit(Model(), loader)
    return watch, trainer


class Hidden(Dataset):
    """Without a length, so that Lightning fetches one batch ahead."""

    def __getitem__(self, index):
        if index >= 20:
            raise IndexError
        return torch.full((32,), float(index))


LOADERS = {
    "shuffled": lambda: DataLoader(Numbered(), batch_size=4, shuffle=True),
    "with its own generator": lambda: DataLoader(
        Numbered(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "with replacement": lambda: DataLoader(
        Numbered(), batch_size=4, sampler=WeightedRandomSampler(torch.ones(22), 22)
    ),
    "with a batch sampler": lambda: DataLoader(
        Numbered(), batch_sampler=BatchSampler(RandomSampler(Numbered()), 5, drop_last=True)
    ),
    "with workers": lambda: DataLoader(Numbered(), batch_size=4, shuffle=True, num_workers=2),
    "with workers that stay": lambda: DataLoader(
        Numbered(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "fetched ahead": lambda: DataLoader(
        Hidden(), batch_sampler=[[1, 2], [5, 4], [3, 9], [0, 11]] * 2
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_tells_the_rows_of_each_batch_and_changes_nothing(name):
    watched, _ = fit(LOADERS[name]())
    assert watched.told == watched.true
    assert len(watched.told) > 6
    plain, _ = fit(LOADERS[name](), record=False)
    assert plain.true == watched.true


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_is_left_as_it_was(name):
    loader = LOADERS[name]()
    before = dict(vars(loader))
    _, trainer = fit(loader)
    assert vars(loader).keys() == before.keys()
    assert all(vars(loader)[key] is before[key] for key in before if key != "_iterator")
    assert "process_dataloader" not in vars(trainer.strategy)


def test_only_some_batches_and_reloaded_loaders():
    watch, _ = fit(
        DataLoader(Numbered(), batch_size=4, shuffle=True),
        epochs=3,
        limit_train_batches=2,
        reload_dataloaders_every_n_epochs=1,
    )
    assert watch.told == watch.true
    assert len(watch.told) == 6


def test_another_pass_over_the_loader_in_between_confuses_nothing():
    loader = DataLoader(Numbered(), batch_size=4, shuffle=True)

    class Reads(Watch):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            next(iter(loader))
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    watch = Reads()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, barebones=True, callbacks=[watch], limit_val_batches=0
    )
    trainer.fit(Model(), loader)
    assert watch.told == watch.true


def test_indices_are_those_of_the_loaders_dataset():
    watch, _ = fit(DataLoader(Subset(Numbered(), [20, 10, 5, 1]), batch_size=2), epochs=1)
    assert watch.told == [[0, 1], [2, 3]]
    assert watch.true == [[20, 10], [5, 1]]


class Counts(DataLoader):
    """A class of its own, whose order only it knows."""

    def __iter__(self):
        return iter([torch.full((2, 32), 3.0)] * 4)


class Batches:
    """Gives batches, and that is all."""

    def __iter__(self):
        return iter([torch.ones(2, 32)] * 3)


class Keyed(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, key):
        return torch.full((32,), float(key[1]))


UNKNOWN = {
    "a stream": lambda: DataLoader(Stream(), batch_size=4),
    "several loaders": lambda: CombinedLoader(
        {"a": DataLoader(Numbered(), batch_size=4), "b": DataLoader(Numbered(), batch_size=2)}
    ),
    "no loader of torch": Batches,
    "a class of its own": lambda: Counts(Numbered(), batch_size=2),
    "whole batches": lambda: DataLoader(
        [torch.ones(3, 32)] * 3, batch_size=None, sampler=SequentialSampler(range(3))
    ),
    "keys that are no numbers": lambda: DataLoader(
        Keyed(), batch_sampler=[[("a", 1), ("a", 2)], [("b", 3), ("b", 4)]]
    ),
    "a batch of other rows": lambda: DataLoader(
        Numbered(20), batch_size=4, collate_fn=lambda rows: torch.stack(rows[:2])
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_not_told(name):
    watch, _ = fit(UNKNOWN[name](), epochs=1)
    assert watch.told
    assert set(map(str, watch.told)) == {"None"}


def test_memory_is_bounded():
    loader = DataLoader(Numbered(4000), batch_size=2)
    watch = Watch()
    held = []

    class Measure(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            iterator = trainer.fit_loop._data_fetcher._combined_loader._iterator.iterators[0]
            held.append(len(iterator._sampler_iter._kept))

    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, barebones=True, callbacks=[watch, Measure()],
        limit_val_batches=0, limit_train_batches=300,
    )  # fmt: skip
    trainer.fit(Model(), loader)
    assert watch.told == watch.true
    assert max(held) <= 32


def test_loaders_are_given_back_after_an_exception():
    loader = DataLoader(Numbered(), batch_size=4)
    before = set(vars(loader))

    class Fails(Watch):
        def on_train_batch_end(self, *_):
            raise RuntimeError("on purpose")

    trainer = L.Trainer(accelerator="cpu", max_epochs=1, barebones=True, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(Model(), loader)
    assert set(vars(loader)) == before
