"""Rows beside a loader: which they are, and that the loader does not notice."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stablelightning.callbacks.spread_rows import spread_batches
from stablelightning.errors import DataError
from tests.contracts.models import Resumable


def rows(loaders, number, **settings):
    return [batch.tolist() for batch in spread_batches(loaders, number, **settings)]


def loader(**settings):
    return DataLoader(torch.arange(10), **{"batch_size": 3, **settings})


def test_all_rows_where_there_are_fewer():
    assert rows(loader(shuffle=True), 99) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_the_same_rows_every_time_and_no_generator_moves():
    made = loader(shuffle=True)
    before = torch.get_rng_state()
    assert rows(made, 4) == rows(made, 4) == [[0, 3, 6], [9]]
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_the_rows():
    shares = [rows(loader(), 6, part=part, parts=2) for part in range(2)]
    assert sorted(row for share in shares for batch in share for row in batch) == [0, 2, 4, 5, 7, 9]
    assert [sum(map(len, share)) for share in shares] == [3, 3]


def test_a_structure_of_loaders_gives_a_structure_of_batches():
    both = {"a": loader(), "b": DataLoader(torch.arange(100, 110), batch_size=3)}
    first, *_ = spread_batches(both, 4)
    assert first["a"].tolist() == [0, 3, 6]
    assert first["b"].tolist() == [100, 103, 106]


def test_a_stream_is_read_from_a_copy():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(10)

    assert rows(DataLoader(Stream(), batch_size=3), 4) == [[0, 1, 2], [3, 4, 5]]


def test_a_loader_that_counts_is_read_from_a_copy():
    made = Resumable(loader())
    assert rows(made, 4) == [[0, 1, 2], [3, 4, 5]]
    assert made.position == 0


def test_data_that_can_be_read_once_is_refused():
    with pytest.raises(DataError, match="only once"):
        list(spread_batches((batch for batch in loader()), 4))


def test_rows_are_collated_as_the_loader_does():
    made = DataLoader(
        TensorDataset(torch.arange(4)), batch_size=2, collate_fn=lambda found: len(found)
    )
    assert list(spread_batches(made, 3)) == [2, 1]


def test_datasets_that_give_several_rows_at_once_are_asked_for_them():
    class Bulk(Dataset):
        def __len__(self):
            return 4

        def __getitems__(self, places):
            return [torch.tensor(place * 10) for place in places]

    assert rows(DataLoader(Bulk(), batch_size=2), 4) == [[0, 10], [20, 30]]
