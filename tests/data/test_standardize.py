import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.data.standardize import Standardization


@st.composite
def tables(draw):
    shape = (draw(st.integers(2, 40)), draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    spread = 10 ** draw(st.floats(-6, 6))
    centre = spread * draw(st.floats(-1e5, 1e5))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * spread + centre


@given(tables())
def test_fitted_rows_have_mean_zero_and_deviation_one(values):
    scaled = Standardization.fit(values).apply(values)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled.mean(0), torch.zeros(values.shape[1]), atol=1e-4, rtol=0)
    spread = scaled.std(0, correction=0)
    torch.testing.assert_close(spread, torch.ones(values.shape[1]), atol=1e-3, rtol=0)


@given(st.floats(-1e12, 1e12), st.integers(1, 500))
def test_a_constant_column_is_only_shifted(value, rows):
    values = torch.full((rows, 1), value, dtype=torch.float64)
    fitted = Standardization.fit(values)
    assert fitted.scale.item() == 1.0
    assert fitted.apply(values).abs().max() <= 1e-12 * abs(value) + 1e-12


def test_a_small_spread_around_zero_is_no_constant():
    values = torch.tensor([[-1e-9], [1e-9]])
    torch.testing.assert_close(
        Standardization.fit(values).apply(values), torch.tensor([[-1.0], [1.0]])
    )


def test_golden_numbers():
    # 2, 4, 4, 4, 5, 5, 7, 9: mean 5, population standard deviation 2.
    fitted = Standardization.fit(torch.tensor([2.0, 4, 4, 4, 5, 5, 7, 9]))
    assert (fitted.mean.item(), fitted.scale.item()) == (5.0, 2.0)
    assert fitted.apply(torch.tensor([9.0])).tolist() == [2.0]
