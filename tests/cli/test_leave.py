"""What a run leaves of a data module that is not ours: images where there are any, no error."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stablelightning.cli.figures import images_of
from stablelightning.cli.leave import with_dataset_rows


class Data:
    """A data module of somebody else, with an attribute that ours happen to have."""

    def __init__(self, dataset, channels=1, loaders=1):
        self.in_channels = channels
        self._loaders = [DataLoader(dataset) for _ in range(loaders)]

    def test_dataloader(self):
        return self._loaders if len(self._loaders) > 1 else self._loaders[0]


class Dicts(Dataset):
    def __getitem__(self, row):
        return {"inputs": torch.zeros(1, 4, 4)}


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 4, 4), 0


class Sizes(Dataset):
    def __getitem__(self, row):
        return torch.zeros(1, 4, 4 + row), 0


def pairs(*shape):
    return TensorDataset(torch.rand(5, *shape), torch.arange(5))


INDEX = torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("dataset", "channels", "shape"),
    [
        (pairs(16), 1, (2, 1, 4, 4)),
        (pairs(48), 3, (2, 3, 4, 4)),
        (pairs(1, 4, 6), 1, (2, 1, 4, 6)),
        (pairs(3, 4, 6), 3, (2, 3, 4, 6)),
    ],
)
def test_images_are_found_by_their_index(dataset, channels, shape):
    images = images_of(Data(dataset, channels), INDEX)
    assert images.shape == shape
    assert torch.equal(images.flatten(1), dataset.tensors[0][INDEX].flatten(1))


@pytest.mark.parametrize(
    "data",
    [
        Data(pairs(15)),
        Data(pairs(1, 100)),  # a signal
        Data(pairs(2, 4, 4), channels=2),
        Data(pairs(3, 4, 4), channels=1),
        Data(pairs(16), channels=None),
        Data(pairs(16), loaders=2),
        Data(Dicts()),
        Data(Endless()),
        Data(Sizes()),
        object(),
        None,
    ],
)
def test_anything_else_is_no_image_and_no_error(data):
    assert images_of(data, INDEX) is None


def test_rows_of_the_data_stand_beside_the_index():
    class Known:
        test_rows = torch.tensor([70, 71, 72, 73])

    rows = {"index": INDEX, "mean": torch.rand(2)}
    told = with_dataset_rows(rows, Known())
    assert list(told) == ["index", "row", "mean"]
    assert told["row"].tolist() == [73, 71]


@pytest.mark.parametrize("places", [None, torch.arange(2), property(lambda self: None)])
def test_rows_that_are_not_known_are_left_out(places):
    data = type("Data", (), {"test_rows": places})()
    rows = {"index": INDEX, "mean": torch.rand(2)}
    assert with_dataset_rows(rows, data) is rows
    assert with_dataset_rows({}, data) == {}
