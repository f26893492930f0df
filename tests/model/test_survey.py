"""Survey: counted work, split at the first draw, the same on every machine and every call."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.model.survey import Survey, TooLarge


def survey(forward, x) -> Survey:
    with torch.no_grad(), Survey() as found:
        forward(x)
    return found


def test_work_is_split_at_the_first_draw() -> None:
    first, second = nn.Linear(32, 64), nn.Linear(64, 128)
    x = torch.randn(16, 32)
    steady = survey(lambda x: second(first(x)), x)
    split = survey(lambda x: second(F.dropout(first(x))), x)
    assert steady.live_work == 0
    assert steady.largest == 0
    assert 1 <= split.prefix_work / survey(first, x).prefix_work < 1.5  # and memory for the mask
    assert split.prefix_work + split.live_work > steady.prefix_work
    assert split.live_work > split.prefix_work  # four times the multiplications
    assert split.largest == 16 * 128 * 4


def test_draws_are_counted_in_elements() -> None:
    x = torch.ones(10, 20)
    assert survey(lambda x: F.dropout(x), x).drawn == 200
    assert survey(lambda x: F.dropout(x, training=False), x).drawn == 0
    assert survey(lambda x: F.dropout(x, p=0.0), x).drawn == 0
    assert survey(lambda x: torch.rand(3, 1, 1) + F.dropout(x), x).drawn == 203


def test_a_second_call_counts_the_same() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    first, second = survey(layer, x), survey(layer, x)
    for name in ("operations", "prefix_work", "live_work", "largest", "drawn", "reads_values"):
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize(
    "read",
    [
        lambda y: y.sum().item(),
        lambda y: float(y[0, 0]),
        lambda y: bool((y > 0).any()),
        lambda y: y[y > 0],
        lambda y: y.nonzero(),
        lambda y: y.unique(),
        lambda y: torch.equal(y, y),
    ],
)
def test_reading_values_matters_after_the_first_draw_only(read) -> None:
    x = torch.randn(4, 4)
    assert survey(lambda x: read(F.dropout(x)), x).reads_values
    assert not survey(lambda x: (read(x), F.dropout(x)), x).reads_values
    assert not survey(lambda x: F.dropout(x).exp().sum(), x).reads_values


def test_a_pass_that_grows_too_large_is_abandoned() -> None:
    x = torch.ones(10, 10)
    with torch.no_grad(), Survey(largest_allowed=400):
        F.dropout(x.repeat(10, 10)[:10, :10]) * 2  # the prefix may be large
    with pytest.raises(TooLarge, match="4000 bytes") as error, Survey(largest_allowed=400):
        F.dropout(x).repeat(10, 1)
    assert error.value.bytes == 4000


def test_recurrent_kernels_count_for_their_matrices() -> None:
    x = torch.randn(7, 3, 16)
    small, large = nn.LSTM(16, 8).eval(), nn.LSTM(16, 64).eval()
    assert survey(large, x).prefix_work > 4 * survey(small, x).prefix_work
