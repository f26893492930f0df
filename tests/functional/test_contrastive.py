import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.contrastive import (
    alignment,
    nt_xent,
    partner_logits,
    uniformity,
)
from tests.processes import WORLD, reports_of

TEMPERATURES = [0.05, 0.1, 0.5, 1.0, 10.0]


def written_out(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, one pair after the other."""
    z = [row.double() / row.double().norm() for row in (*first, *second)]
    n = len(first)
    total = 0.0
    for i in range(2 * n):
        scores = {k: math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i}
        total -= math.log(scores[(i + n) % (2 * n)] / sum(scores.values()))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rows", [2, 5])
def test_it_is_the_equation_of_the_paper(rows, temperature):
    first, second = torch.randn(2, rows, 7, dtype=torch.float64)
    loss = nt_xent(first, second, temperature=temperature)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(written_out(first, second, temperature), rel=1e-12)


def test_equal_embeddings_leave_chance():
    same = torch.ones(4, 3)
    assert float(nt_xent(same, same)) == pytest.approx(math.log(7))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0.05, 5.0), st.floats(0.01, 100.0))
def test_neither_length_nor_the_order_of_views_and_rows_matters(rows, seed, temperature, length):
    first, second = torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(seed)).double()
    loss = nt_xent(first, second, temperature=temperature)
    order = torch.randperm(rows)
    for a, b in [(length * first, second), (second, first), (first[order], second[order])]:
        torch.testing.assert_close(nt_xent(a, b, temperature=temperature), loss)
    assert loss > 0


def test_gradients_are_those_of_finite_differences():
    first, second = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (first, second))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e15])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_it_stays_finite(scale, temperature):
    first = (scale * torch.randn(4, 8)).requires_grad_()
    with torch.no_grad():
        first[0] = 0.0  # of a network that died
    loss = nt_xent(first, torch.randn(4, 8), temperature=temperature)
    loss.backward()
    assert loss.isfinite()
    assert first.grad.isfinite().all()
    assert not first.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_on_the_way(dtype):
    first, second = torch.randn(2, 6, 16).to(dtype)
    expected = nt_xent(first.double(), second.double(), temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(first, second, temperature=0.05)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_partner_is_named_and_oneself_is_out():
    logits, partners, share = partner_logits(*torch.randn(2, 3, 5), temperature=1.0)
    assert partners.tolist() == [3, 4, 5, 0, 1, 2]
    assert (logits.diagonal() == -torch.inf).all()
    assert torch.isfinite(logits).sum() == 6 * 5
    assert share == 1.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none(temperature):
    with pytest.raises(RecipeError, match="temperature must be > 0"):
        nt_xent(torch.eye(2), torch.eye(2), temperature=temperature)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((2, 3, 1), (2, 3, 1)), ((2,), (2,))])
def test_shapes_that_do_not_fit(shapes):
    views = [torch.zeros(shape) for shape in shapes]
    for function in (nt_xent, alignment):
        with pytest.raises(DataError, match="embeddings \\(N, D\\)"):
            function(*views)


def test_one_row_has_nothing_to_be_told_from():
    with pytest.raises(DataError, match="at least two rows"):
        nt_xent(torch.eye(1), torch.eye(1))
    with pytest.raises(DataError, match="at least two rows"):
        uniformity(torch.eye(1))


def test_alignment_is_the_mean_squared_distance():
    first, second = torch.randn(2, 5, 3)
    apart = [(a / a.norm() - b / b.norm()).norm() ** 2 for a, b in zip(first, second, strict=True)]
    assert float(alignment(first, second)) == pytest.approx(float(sum(apart)) / 5, rel=1e-5)
    assert float(alignment(first, -first)) == pytest.approx(4.0)


def test_uniformity_is_the_mean_over_pairs():
    z = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64))
    pairs = [(i, j) for i, j in product(range(5), range(5)) if i < j]
    mean = sum(math.exp(-2 * float((z[i] - z[j]).square().sum())) for i, j in pairs) / len(pairs)
    assert float(uniformity(7 * z)) == pytest.approx(math.log(mean))
    assert float(uniformity(torch.ones(4, 2))) == pytest.approx(0.0, abs=1e-6)


# ---- two processes ------------------------------------------------------------------------------

#: Rows of each process: equal, and not.
SPLITS = {"equal": (4, 4), "unequal": (5, 2)}


def encoder() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def whole_batch(rows: int) -> Tensor:
    return torch.randn(2, rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(net: nn.Module, views: Tensor) -> tuple[float, list[Tensor]]:
    first, second = net(views.flatten(0, 1)).chunk(2)
    loss = nt_xent(first, second, temperature=0.2)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in net.parameters()]


def report(rank: int) -> dict:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    seen = {}
    for name, sizes in SPLITS.items():
        views = whole_batch(sum(sizes))
        mine = views[:, sum(sizes[:rank]) : sum(sizes[: rank + 1])]
        seen[name] = step(DistributedDataParallel(encoder()), mine)
        with torch.no_grad():
            first, second = encoder()(mine.flatten(0, 1)).chunk(2)
            seen[f"{name} alone"] = nt_xent(first, second, temperature=0.2, gather=False).item()
            seen[f"{name} seen"] = nt_xent(first, second, temperature=0.2).item()
    torch.distributed.destroy_process_group()
    return seen


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return reports_of(report, tmp_path_factory.mktemp("contrastive"))


@pytest.mark.parametrize("name", SPLITS)
def test_two_processes_are_as_good_as_one(name, reports):
    loss, gradients = step(encoder(), whole_batch(sum(SPLITS[name])))
    assert sum(r[name][0] for r in reports) / WORLD == pytest.approx(loss, rel=1e-12)
    for r in reports:
        assert r[f"{name} seen"] == pytest.approx(r[name][0], rel=1e-12)
        for ours, expected in zip(r[name][1], gradients, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def test_without_gathering_the_others_are_ones_own(reports):
    views = whole_batch(8)[:, :4]
    with torch.no_grad():
        expected = nt_xent(*encoder()(views.flatten(0, 1)).chunk(2), temperature=0.2).item()
    assert reports[0]["equal alone"] == pytest.approx(expected, rel=1e-12)
    assert reports[0]["equal alone"] != pytest.approx(reports[0]["equal seen"], rel=1e-3)
