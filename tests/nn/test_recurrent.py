"""Recurrent layers: torch's own numbers, locked masks, lengths, layer norm, and their sampling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import stablelightning as sl
from stablelightning.errors import DataError, NothingRandomError, RecipeError
from stablelightning.nn import LockedDropout, RecurrentNet, VariationalGRU, VariationalLSTM

KINDS = {VariationalLSTM: nn.LSTM, VariationalGRU: nn.GRU}
both_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def joined(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat(state) if isinstance(state, tuple) else state


def in_a_loop(layer: nn.Module) -> nn.Module:
    """The same layer, its recurrent dropout at work, at a rate that drops nothing in practice."""
    layer.recurrent_dropout.p = 1e-12
    return layer.train()


# ---- torch's own numbers ----------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    batch_first=st.booleans(),
    steps=st.integers(1, 6),
    rows=st.integers(1, 4),
    loop=st.booleans(),
    given_state=st.booleans(),
)
def test_without_extras_it_is_the_layer_of_torch(
    kind, batch_first, steps, rows, loop, given_state
) -> None:
    layer, plain = kind(3, 5, batch_first=batch_first), KINDS[kind](3, 5, batch_first=batch_first)
    layer.load_state_dict(plain.state_dict())
    if loop:
        in_a_loop(layer)
    inputs = torch.randn((rows, steps, 3) if batch_first else (steps, rows, 3))
    state = None
    if given_state:
        parts = torch.randn(2, 1, rows, 5).unbind(0)
        state = parts if kind is VariationalLSTM else parts[0]
    output, final = layer(inputs, state)
    expected, expected_final = plain(inputs, state)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(final, expected_final)


@both_kinds
def test_gradients_of_the_loop_are_those_of_the_kernel(kind) -> None:
    layer, inputs = kind(3, 5), torch.randn(6, 4, 3)
    gradients = []
    for one in (layer.eval(), in_a_loop(layer)):
        output, state = one(inputs)
        loss = output.square().sum() + joined(state).sum()
        gradients.append(torch.autograd.grad(loss, list(one.parameters())))
    torch.testing.assert_close(*gradients)


# ---- lengths ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    batch_first=st.booleans(),
    loop=st.booleans(),
    layer_norm=st.booleans(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_a_padded_row_is_the_row_alone(kind, batch_first, loop, layer_norm, lengths) -> None:
    layer = kind(3, 4, layer_norm=layer_norm, batch_first=batch_first)
    if loop:
        in_a_loop(layer)
    axis = 1 if batch_first else 0
    rows = [torch.randn(length, 3) for length in lengths]
    padded = torch.stack([F.pad(row, (0, 0, 0, 6 - len(row)), value=9.0) for row in rows], 1 - axis)
    output, state = layer(padded, lengths=torch.tensor(lengths))
    assert output.shape[axis] == 6
    for index, row in enumerate(rows):
        alone, final = layer(row.unsqueeze(1 - axis))
        part = output.select(1 - axis, index)
        torch.testing.assert_close(part[: len(row)], alone.squeeze(1 - axis))
        assert (part[len(row) :] == 0).all()
        torch.testing.assert_close(joined(state)[:, index], joined(final)[:, 0])


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("loop", [True, False])
@both_kinds
def test_packed_sequences_come_back_packed(kind, loop, enforce_sorted) -> None:
    layer, plain = kind(3, 4), KINDS[kind](3, 4)
    plain.load_state_dict(layer.state_dict())
    if loop:
        in_a_loop(layer)
    lengths = torch.tensor([5, 3, 1] if enforce_sorted else [3, 1, 5])
    packed = pack_padded_sequence(torch.randn(5, 3, 3), lengths, enforce_sorted=enforce_sorted)
    output, state = layer(packed)
    expected, expected_state = plain(packed)
    assert isinstance(output, PackedSequence)
    torch.testing.assert_close(output.data, expected.data)
    torch.testing.assert_close(state, expected_state)
    torch.testing.assert_close(
        pad_packed_sequence(output)[0], layer(pad_packed_sequence(packed)[0], lengths=lengths)[0]
    )


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([0, 2]), r"in \[1, 4\], got 0 to 2"),
        (torch.tensor([1, 5]), r"in \[1, 4\], got 1 to 5"),
        (torch.tensor([1, 2, 3]), "one for each of 2 rows"),
        (torch.tensor([1.0, 2.0]), "whole numbers"),
    ],
)
@both_kinds
def test_lengths_that_do_not_fit_are_refused(kind, lengths, message) -> None:
    with pytest.raises(DataError, match=message):
        kind(3, 4, batch_first=True)(torch.randn(2, 4, 3), lengths=lengths)


# ---- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_locked_mask_is_drawn_once_per_row_and_sequence(batch_first) -> None:
    dropout = LockedDropout(0.5, batch_first=batch_first).train()
    dropped = dropout(torch.ones(64, 64, 32))
    by_step = dropped.transpose(0, 1) if batch_first else dropped
    assert (by_step == by_step[0]).all()
    assert set(by_step.unique().tolist()) == {0.0, 2.0}
    assert (by_step[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(by_step[0, 0], by_step[0, 1])  # each row has its own
    assert dropout.eval()(dropped) is dropped


def test_an_lstm_drops_the_same_units_at_every_step() -> None:
    layer, inputs = VariationalLSTM(3, 16, dropout=0.3, recurrent_dropout=0.4), torch.randn(5, 8, 3)
    torch.manual_seed(1)
    output, (hidden, cell) = layer.train()(inputs)
    torch.manual_seed(1)
    of_inputs = F.dropout(torch.ones(8, 3), 0.3)
    of_state = F.dropout(torch.ones(8, 16), 0.4)
    step = nn.LSTMCell(3, 16)
    step.load_state_dict({name[:-3]: weight for name, weight in layer.state_dict().items()})
    h = c = torch.zeros(8, 16)
    for index, row in enumerate(inputs):
        h, c = step(row * of_inputs, (h * of_state, c))
        torch.testing.assert_close(output[index], h)
    torch.testing.assert_close((hidden[0], cell[0]), (h, c))


def test_a_gru_keeps_whole_what_its_update_gate_keeps() -> None:
    layer, inputs = VariationalGRU(3, 16, recurrent_dropout=0.4), torch.randn(5, 8, 3)
    with torch.no_grad():
        layer.bias_ih_l0[16:32] = 50.0  # the update gate keeps everything
    state = torch.randn(1, 8, 16)
    output, _ = layer.train()(inputs, state)
    torch.testing.assert_close(output, state.expand(5, 8, 16))


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
@both_kinds
def test_dropout_is_live_in_training_only(kind, rates) -> None:
    layer = kind(3, 16, dropout=rates[0], recurrent_dropout=rates[1])
    inputs = torch.randn(5, 4, 3)
    layer.train()
    assert not torch.equal(layer(inputs)[0], layer(inputs)[0])
    layer.eval()
    assert torch.equal(layer(inputs)[0], layer(inputs)[0])


# ---- layer norm -------------------------------------------------------------------------------


@both_kinds
def test_layer_norm_makes_the_scale_of_the_weights_void(kind) -> None:
    layer, inputs = kind(8, 16, layer_norm=True), torch.randn(5, 4, 8)
    before, _ = layer(inputs)
    with torch.no_grad():
        # Upwards only: the epsilon of the norm is felt where the state is still near zero.
        layer.weight_ih_l0.mul_(7.0)
        layer.weight_hh_l0.mul_(3.0)
    torch.testing.assert_close(layer(inputs)[0], before, atol=0.01, rtol=0)
    plain = kind(8, 16)
    before, _ = plain(inputs)
    with torch.no_grad():
        plain.weight_ih_l0.mul_(7.0)
    assert (plain(inputs)[0] - before).abs().max() > 0.1


@both_kinds
def test_resetting_leaves_the_norms_as_norms(kind) -> None:
    layer = kind(3, 4, layer_norm=True)
    norms = [m for m in layer.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == (3 if kind is VariationalLSTM else 2)
    for norm in norms:
        nn.init.zeros_(norm.weight)
    before = layer.weight_hh_l0.clone()
    layer.reset_parameters()
    assert all((norm.weight == 1).all() for norm in norms)
    assert not torch.equal(layer.weight_hh_l0, before)


@pytest.mark.parametrize("layer_norm", [True, False])
@both_kinds
def test_every_parameter_gets_a_gradient(kind, layer_norm) -> None:
    layer = kind(3, 4, recurrent_dropout=0.1, layer_norm=layer_norm).train()
    layer(torch.randn(5, 8, 3))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


# ---- sampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("rates", [(0.4, 0.0), (0.0, 0.4), (0.4, 0.4)])
@both_kinds
def test_monte_carlo_dropout_finds_each_kind_of_randomness(kind, rates, layer_norm) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(
                3, 16, dropout=rates[0], recurrent_dropout=rates[1], layer_norm=layer_norm
            )
            self.head = nn.Linear(16, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.layer(inputs)[0][-1])

    net, inputs = Net().eval(), torch.randn(6, 5, 3)
    loop = sl.mc_dropout(net, inputs, samples=20, seed=0, engine="loop")
    replay = sl.mc_dropout(net, inputs, samples=20, seed=0, engine="replay")
    assert (loop.epistemic > 0).all()
    torch.testing.assert_close(replay.mean, loop.mean, rtol=0, atol=0)
    many = sl.mc_dropout(net, inputs, samples=400, seed=0)
    loop = sl.mc_dropout(net, inputs, samples=400, seed=1, engine="loop")
    torch.testing.assert_close(many.mean, loop.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(many.epistemic, loop.epistemic, rtol=0.5, atol=1e-3)
    assert not any(module.training for module in net.modules())


def test_a_net_without_dropout_has_nothing_to_sample() -> None:
    with pytest.raises(NothingRandomError):
        sl.mc_dropout(RecurrentNet(3, 4, dropout=0.0).eval(), torch.randn(2, 5, 3))


def test_samples_of_padded_rows_are_those_of_the_rows() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = VariationalGRU(3, 8, recurrent_dropout=0.4, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
            return self.head(self.layer(inputs, lengths=lengths)[1][0])

    net, inputs = Net().eval(), torch.randn(2, 6, 3)
    padded = sl.mc_dropout(net, (inputs, torch.tensor([6, 2])), samples=600, seed=0)
    alone = sl.mc_dropout(net, (inputs[1:, :2], torch.tensor([2])), samples=600, seed=1)
    torch.testing.assert_close(padded.mean[1:], alone.mean, atol=0.03, rtol=0)


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_size": 0, "hidden_size": 4}, "input_size must be >= 1, got 0"),
        ({"input_size": 3, "hidden_size": 0}, "hidden_size must be >= 1, got 0"),
        ({"input_size": 3, "hidden_size": 4, "dropout": 1.0}, "^dropout must be in"),
        (
            {"input_size": 3, "hidden_size": 4, "recurrent_dropout": -0.1},
            "^recurrent_dropout must be in",
        ),
    ],
)
@both_kinds
def test_settings_out_of_range_are_refused(kind, settings, message) -> None:
    with pytest.raises(RecipeError, match=message):
        kind(**settings)


@both_kinds
def test_inputs_without_three_axes_and_states_of_another_size_are_refused(kind) -> None:
    with pytest.raises(DataError, match="3 axes, got 2"):
        kind(3, 4)(torch.randn(5, 3))
    state = torch.zeros(1, 3, 4)
    with pytest.raises(RuntimeError, match="hidden"):
        in_a_loop(kind(3, 4))(
            torch.randn(5, 2, 3), (state, state) if kind is VariationalLSTM else state
        )
