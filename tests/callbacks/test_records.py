import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from stablelightning.callbacks.records import Observation, Positions, Record, in_target_units
from stablelightning.callbacks.scoring import Sums
from stablelightning.errors import DataError, StableLightningWarning
from stablelightning.model.prediction import Prediction
from stablelightning.nn.heads import Gaussian


def prediction(mean: torch.Tensor, *, task: str = "classification", **fields: object) -> Prediction:
    per_row = torch.ones(len(mean), *mean.shape[2:])
    return Prediction(
        **{
            "task": task,
            "mean": mean,
            "total": per_row,
            "aleatoric": per_row,
            "epistemic": per_row,
            "standard_error": mean,
            "samples_used": 10,
            "engine": "loop",
            **fields,
        }
    )


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 7))
def test_each_row_of_a_distributed_dataset_counts_once(size, world, batch_size):
    dataset = list(range(size))
    counted = []
    for rank in range(world):
        sampler = DistributedSampler(dataset, world, rank, shuffle=False)
        loader = DataLoader(dataset, sampler=sampler, batch_size=batch_size)
        positions = Positions(loader, rank=rank, world=world)
        for batch in loader:
            index, fresh = positions.next(len(batch))
            assert index[fresh].tolist() == batch[fresh].tolist()
            counted += index[fresh].tolist()
    assert sorted(counted) == dataset


def test_wrapped_samplers_interleave_too():
    order = SequentialSampler(range(5))
    sampler = DistributedSamplerWrapper(order, num_replicas=2, rank=1, shuffle=False)
    loader = DataLoader(range(5), sampler=sampler, batch_size=3)
    index, fresh = Positions(loader, rank=1, world=2).next(3)
    assert (index.tolist(), fresh.tolist()) == ([1, 3, 5], [True, True, False])


def test_nothing_is_dropped_where_the_order_is_unknown():
    class Mine(DistributedSampler):
        pass

    loader = DataLoader(range(4), sampler=Mine(range(4), 2, 0))
    assert Positions(loader, rank=0, world=2).next(9)[1].all()
    assert Positions(object(), rank=0, world=1, cycles=True).next(9)[1].all()
    assert Positions(DataLoader(range(4)), rank=0, world=1).next(9)[1].all()


def test_a_second_round_is_not_counted():
    positions = Positions(DataLoader(range(4)), rank=0, world=1, cycles=True)
    assert positions.next(3)[1].tolist() == [True] * 3
    assert positions.next(3)[1].tolist() == [True, False, False]


def test_dense_predictions_are_scored_without_rows():
    mean = torch.rand(2, 3, 4, 4).softmax(1)
    target = torch.randint(0, 3, (2, 4, 4))
    record = Record("classification")
    seen = Observation(prediction(mean), prediction(mean), target, 1, 2)
    record.add(seen, torch.arange(2), torch.tensor([True, False]))
    assert record.rows == []
    expected = (mean[0].argmax(0) == target[0]).double().mean().item()
    assert record.sums.means()["accuracy_mc"] == pytest.approx(expected)


def test_ignored_classes_are_left_out_and_wrong_ones_are_told():
    mean = torch.eye(3)
    record = Record("classification")
    everything = torch.ones(3, dtype=torch.bool)
    ignored = Observation(prediction(mean), prediction(mean), torch.tensor([0, -100, 0]), 1, 3)
    record.add(ignored, torch.arange(3), everything)
    assert record.sums.means()["accuracy"] == pytest.approx(0.5)
    wrong = Observation(prediction(mean), prediction(mean), torch.tensor([1, 2, 3]), 1, 3)
    with pytest.warns(StableLightningWarning, match="1 targets of a batch are not below"):
        record.add(wrong, torch.arange(3), everything)


def test_processes_that_disagree_about_the_task_are_told_to_name_it():
    with pytest.raises(DataError, match=r"multilabel and regression.*task="):
        Record.merged([Record("regression"), Record("multilabel")])


def test_merged_rows_are_in_the_order_of_the_dataset():
    parts = [
        Record("regression", Sums(), [{"index": torch.tensor([0, 2]), "mean": torch.zeros(2)}]),
        Record("regression", Sums(), [{"index": torch.tensor([1]), "mean": torch.ones(1)}]),
    ]
    (rows,) = Record.merged(parts).rows
    assert rows["index"].tolist() == [0, 1, 2]
    assert rows["mean"].tolist() == [0, 1, 0]


def test_target_units_scale_means_and_variances():
    samples = Gaussian(torch.ones(5, 2), torch.ones(5, 2))
    scaled = in_target_units(
        prediction(torch.ones(2), task="regression", samples=samples), (100.0, 10.0)
    )
    assert scaled.mean.tolist() == [110, 110]
    assert scaled.total.tolist() == scaled.epistemic.tolist() == [100, 100]
    assert scaled.standard_error.tolist() == [10, 10]
    assert scaled.samples.mean[0, 0] == 110
    assert scaled.samples.variance[0, 0] == 100
