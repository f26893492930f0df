"""Balanced fusion: scales measured once, equal on all processes, and exact on resume."""

import copy
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.errors import DataError, RecipeError
from stablelightning.nn import BalancedFusion

#: A run that takes longer hangs in a collective.
PATIENCE_SECONDS = 120


class Towers(nn.Module):
    """Two towers of unlike scale and width, joined, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = nn.Linear(4, 6)
        self.quiet = nn.Linear(4, 3)
        with torch.no_grad():
            self.loud.weight.mul_(300.0)
            self.quiet.weight.mul_(0.01)
        self.fusion = BalancedFusion(2)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(9, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.fusion(self.loud(inputs), self.quiet(inputs)))


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


@settings(deadline=None)
@given(scales=st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=4), dim=st.sampled_from([1, -1]))
def test_after_the_first_batch_every_tower_is_equally_loud(scales, dim) -> None:
    outputs = [scale * torch.randn(16, 2, 5) for scale in scales]
    fusion = BalancedFusion(len(scales), dim=dim).train()
    parts = fusion(*outputs).split([o.shape[dim] for o in outputs], dim)
    assert all(rms(part) == pytest.approx(1.0, rel=1e-4) for part in parts)
    torch.testing.assert_close(fusion.scale, torch.tensor([rms(o) for o in outputs]))


def test_sums_keep_the_scale() -> None:
    outputs = [10.0**k * torch.randn(4096, 5) for k in range(4)]
    joined = BalancedFusion(4, dim=None).train()(*outputs)
    assert joined.shape == (4096, 5)
    assert rms(joined) == pytest.approx(1.0, rel=0.05)


def test_scales_are_measured_once_and_in_training_only() -> None:
    fusion, outputs = BalancedFusion(2), (torch.full((4, 2), 5.0), torch.full((4, 2), 0.5))
    assert torch.equal(fusion.eval()(*outputs), torch.cat(outputs, 1))
    assert not fusion.measured
    fusion.train()(*outputs)
    assert fusion.scale.tolist() == [5.0, 0.5]
    fusion(*(7 * output for output in outputs))
    assert fusion.scale.tolist() == [5.0, 0.5]


def test_an_explicit_call_measures_and_the_first_batch_does_not_again() -> None:
    fusion = BalancedFusion(2)
    fusion.measure(torch.full((4, 2), 5.0), torch.full((4, 9), 0.5))
    fusion.train()(torch.randn(4, 2), torch.randn(4, 9))
    assert fusion.scale.tolist() == [5.0, 0.5]
    fusion.measure(torch.full((4, 2), 2.0), torch.full((4, 9), 3.0))
    assert fusion.scale.tolist() == [2.0, 3.0]


def test_what_cannot_be_measured_waits_for_the_next_batch() -> None:
    fusion, fine = BalancedFusion(2).train(), torch.ones(4, 2)
    broken = torch.full((4, 2), float("nan"))
    fusion(fine, broken)
    assert not fusion.measured
    with pytest.raises(DataError, match="must be finite to be measured"):
        fusion.measure(fine, broken)
    fusion(fine, 3 * fine)
    assert fusion.scale.tolist() == [1.0, 3.0]


def test_a_silent_tower_keeps_its_scale() -> None:
    fusion = BalancedFusion(2).train()
    fusion(torch.zeros(4, 2), 3 * torch.ones(4, 2))
    assert fusion.scale.tolist() == [1.0, 3.0]


def test_the_weights_learn_at_the_same_pace() -> None:
    """In equal shares: the gradient of a weight does not know its tower's scale."""
    rows = torch.randn(64, 3)
    fusion = BalancedFusion(2).train()
    fusion(1e4 * rows, 1e-4 * rows).square().mean().backward()
    first, second = fusion.weight.grad.tolist()
    assert first == pytest.approx(second, rel=1e-4)
    assert first != 0


def test_a_copy_and_a_restored_module_remember_by_their_buffers() -> None:
    fusion, outputs = BalancedFusion(2).train(), (torch.full((4, 2), 5.0), torch.ones(4, 2))
    fresh = copy.deepcopy(fusion.state_dict())
    fusion(*outputs)
    assert copy.deepcopy(fusion).measured
    fusion.load_state_dict(fresh)  # back to before the first batch: the next one is measured
    fusion(2 * outputs[0], outputs[1])
    assert fusion.scale.tolist() == [10.0, 1.0]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def test_a_resumed_run_equals_the_unbroken_run(tmp_path: Path) -> None:
    model = Towers().train()
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer, range(3))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    steps(model, optimizer, range(3, 6))
    resumed = Towers().train()
    again = torch.optim.Adam(resumed.parameters())
    for state, one in zip(torch.load(tmp_path / "state.pt"), (resumed, again), strict=True):
        one.load_state_dict(state)
    steps(resumed, again, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_sampling_measures_nothing() -> None:
    model = Towers().train()
    sl.mc_dropout(model, torch.randn(8, 4), samples=5, task="regression")
    assert not model.fusion.measured
    assert model.training


def test_two_processes_measure_the_rows_of_both(tmp_path: Path) -> None:
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    processes = torch.multiprocessing.start_processes(
        _process, (rendezvous, str(tmp_path)), nprocs=2, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "the two processes wait for each other"
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # Rank r has r + 1 rows of (r + 1) and of 10 (r + 1): sqrt((1 + 2 * 4) / 3) = sqrt(3).
    torch.testing.assert_close(first["module.scale"], torch.tensor([3.0**0.5, 10 * 3.0**0.5]))


def _process(rank: int, rendezvous: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    rows = torch.full((rank + 1, 2), rank + 1.0)
    model = nn.parallel.DistributedDataParallel(BalancedFusion(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(rows, 10 * rows).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_misuse_is_refused() -> None:
    with pytest.raises(RecipeError, match="towers must be >= 2, got 1"):
        BalancedFusion(1)
    with pytest.raises(DataError, match="joins 3 towers, got 2 outputs"):
        BalancedFusion(3)(torch.ones(2, 2), torch.ones(2, 2))
