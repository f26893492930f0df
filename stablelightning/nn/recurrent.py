"""Recurrent layers whose dropout keeps one mask for a whole sequence, with layer norm if wanted."""

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stablelightning.errors import DataError
from stablelightning.nn.settings import check_dropout, check_sizes


class LockedDropout(_DropoutNd):
    """Dropout that drops the same features at every step of a sequence.

    A mask that is drawn anew at each step adds noise that a recurrent state averages away, and what
    one step forgets the next one sees. Monte Carlo dropout finds it as it finds ``nn.Dropout``.

    Args:
        p: probability of dropping a feature of a row, in [0, 1).
        batch_first: whether rows come before steps.

    Shape:
        ``(L, N, features)``, or ``(N, L, features)`` with ``batch_first``, to the same.

    Raises:
        RecipeError: ``p`` is out of its range.

    Source:
        Gal, Ghahramani 2016, arXiv:1512.05287.

    Example:
        >>> dropped = LockedDropout(0.5, batch_first=True).train()(torch.ones(4, 10, 8))
        >>> bool((dropped == dropped[:, :1]).all())  # every step is as the first
        True
    """

    def __init__(self, p: float = 0.5, *, batch_first: bool = False) -> None:
        check_dropout(p, "p")
        super().__init__(p)
        self.batch_first = batch_first

    @property
    def is_live(self) -> bool:
        """Whether anything is dropped now."""
        return self.training and self.p > 0

    def mask(self, rows: Tensor) -> Tensor:
        """Draw a mask of zeros and 1/(1-p) for rows ``(N, features)``."""
        return F.dropout(torch.ones_like(rows), self.p, self.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop the same features of a row at every step."""
        if not self.is_live:
            return inputs
        steps = 1 if self.batch_first else 0
        return inputs * self.mask(inputs.select(steps, 0)).unsqueeze(steps)


class _VariationalRecurrence(nn.RNNBase):
    """What the LSTM and the GRU share: dropout, lengths, and the choice of a kernel."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    #: Whose forward runs the fused kernel; by its name, because Dynamo loses its way in super().
    _torch_layer: ClassVar[type[nn.RNNBase]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        layer_norm: bool = False,
        batch_first: bool = False,
    ) -> None:
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_dropout(dropout)
        check_dropout(recurrent_dropout, "recurrent_dropout")
        super().__init__(input_size, hidden_size, batch_first=batch_first)  # type: ignore[call-arg, arg-type]
        self.input_dropout = LockedDropout(dropout, batch_first=batch_first)
        self.recurrent_dropout = LockedDropout(recurrent_dropout)
        self.layer_norm = layer_norm
        if layer_norm:
            gates = len(self.weight_hh_l0)
            # The layer's own biases follow, each gate's one in its place.
            self.input_norm = nn.LayerNorm(gates, bias=False)
            self.hidden_norm = nn.LayerNorm(gates, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew as torch does, and set the norms back."""
        super().reset_parameters()
        for child in self.children():
            if isinstance(child, nn.LayerNorm):
                child.reset_parameters()

    def forward(self, input: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """Read sequences; see the class for shapes.

        Args:
            input: padded sequences, or a ``PackedSequence``.
            hx: the state before the first step; ``None`` is zero.
            lengths: steps of each row, int ``(N,)`` in [1, L], where rows are padded at their end.

        Returns:
            As of ``nn.LSTM`` and ``nn.GRU``: the outputs of all steps (packed where the input was;
            zero behind a row's end), and the state after each row's last step.
        """
        if isinstance(input, PackedSequence):
            padded, lengths = pad_packed_sequence(input, batch_first=self.batch_first)
            output, state = self.forward(padded, hx, lengths)
            ordered = input.sorted_indices is None
            return _packed(output, lengths, self.batch_first, ordered=ordered), state
        if input.ndim != 3:
            raise DataError(
                f"a recurrent layer needs sequences with 3 axes, got {input.ndim}; "
                "one sequence alone is a batch of one: sequence.unsqueeze(0) with batch_first."
            )
        if lengths is not None:
            _check_lengths(lengths, input, self.batch_first)
        dropped = self.input_dropout(input)
        if self.layer_norm or self.recurrent_dropout.is_live:
            return self._step_by_step(dropped, hx, lengths)
        return self._fused(dropped, hx, lengths)

    def _fused(self, inputs: Tensor, hx: Any, lengths: Tensor | None) -> Any:
        """All steps in torch's own kernel, several times as fast as a loop."""
        if lengths is None:
            return self._torch_layer.forward(self, inputs, hx)
        steps = inputs.shape[1 if self.batch_first else 0]
        packed, state = self._torch_layer.forward(
            self, _packed(inputs, lengths, self.batch_first), hx
        )
        return pad_packed_sequence(packed, self.batch_first, total_length=steps)[0], state

    def _step_by_step(self, inputs: Tensor, hx: Any, lengths: Tensor | None) -> Any:
        sequence = inputs.transpose(0, 1) if self.batch_first else inputs
        # One product for all steps; only what depends on the state is left to the loop.
        projected = F.linear(sequence, self.weight_ih_l0)
        projected = self._with_biases(self.input_norm(projected) if self.layer_norm else projected)
        if hx is not None:
            self.check_forward_args(inputs, hx, None)
        state = self._initial(projected, hx)
        live = self.recurrent_dropout.is_live
        mask = self.recurrent_dropout.mask(state[0]) if live else None
        reached = None if lengths is None else _reached(lengths, projected)
        outputs = []
        for step, gates in enumerate(projected.unbind(0)):
            hidden = state[0] if mask is None else state[0] * mask
            following = self._step(gates, hidden, state)
            if reached is not None:
                following = tuple(
                    torch.where(reached[step], new, old)
                    for new, old in zip(following, state, strict=True)
                )
            state = following
            outputs.append(state[0])
        output = torch.stack(outputs, 1 if self.batch_first else 0)
        if reached is not None:
            output = output * (reached.transpose(0, 1) if self.batch_first else reached)
        return output, self._final(tuple(part.unsqueeze(0) for part in state))

    def _initial(self, projected: Tensor, hx: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _with_biases(self, projected: Tensor) -> Tensor:
        raise NotImplementedError

    def _step(self, gates: Tensor, hidden: Tensor, state: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _final(self, state: tuple[Tensor, ...]) -> Any:
        raise NotImplementedError

    def _recurred(self, hidden: Tensor) -> Tensor:
        """The product with the state, normalised if wanted, without a bias."""
        product = F.linear(hidden, self.weight_hh_l0)
        return cast(Tensor, self.hidden_norm(product)) if self.layer_norm else product


class VariationalLSTM(_VariationalRecurrence, nn.LSTM):
    """An LSTM layer with variational dropout and layer norm; otherwise ``nn.LSTM`` of one layer.

    Its weights have the names of ``nn.LSTM``, and those of one load into it. Without recurrent
    dropout at work and without layer norm it runs torch's fused kernel; else a loop over the steps,
    about half as fast on a CPU, with the products of all inputs taken at once.

    Args:
        input_size: features of a step, >= 1.
        hidden_size: units of the state, >= 1.
        dropout: probability of dropping an input feature for a whole sequence, in [0, 1).
        recurrent_dropout: the same for the units of the state that each step reads.
        layer_norm: normalise, per row, the two products before the gates, and the cell's state
            before its tanh.
        batch_first: whether rows come before steps.

    Shape:
        Inputs ``(L, N, input_size)``, or ``(N, L, input_size)`` with ``batch_first``, or a
        ``PackedSequence``; the state is ``(hidden, cell)``, each ``(1, N, hidden_size)``. The
        outputs have ``hidden_size`` features.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``forward``: inputs without three axes, or lengths that do not fit them.

    Source:
        Hochreiter, Schmidhuber 1997, Neural Computation 9; Gal, Ghahramani 2016, arXiv:1512.05287
        (dropout, masks tied over gates); Ba et al. 2016, arXiv:1607.06450 (layer norm).

    Example:
        >>> layer = VariationalLSTM(8, 16, recurrent_dropout=0.2, batch_first=True)
        >>> outputs, (hidden, cell) = layer(torch.randn(2, 10, 8), lengths=torch.tensor([10, 3]))
        >>> outputs.shape, hidden.shape, bool((outputs[1, 3:] == 0).all())
        (torch.Size([2, 10, 16]), torch.Size([1, 2, 16]), True)
    """

    _torch_layer = nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        layer_norm: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            layer_norm=layer_norm,
            batch_first=batch_first,
        )
        self.cell_norm = nn.LayerNorm(hidden_size) if layer_norm else nn.Identity()

    def _initial(self, projected: Tensor, hx: Any) -> tuple[Tensor, ...]:
        if hx is not None:
            return hx[0][0], hx[1][0]
        zeros = projected.new_zeros(projected.shape[1], self.hidden_size)
        return zeros, zeros

    def _with_biases(self, projected: Tensor) -> Tensor:
        return projected + (self.bias_ih_l0 + self.bias_hh_l0)

    def _step(self, gates: Tensor, hidden: Tensor, state: Any) -> tuple[Tensor, ...]:
        let, keep, new, out = (gates + self._recurred(hidden)).chunk(4, 1)
        cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(let) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(self.cell_norm(cell)), cell

    def _final(self, state: tuple[Tensor, ...]) -> Any:
        return state


class VariationalGRU(_VariationalRecurrence, nn.GRU):
    """A GRU layer with variational dropout and layer norm; otherwise ``nn.GRU`` of one layer.

    Its weights have the names of ``nn.GRU``. See :class:`VariationalLSTM` for its two kernels.

    Args:
        input_size: features of a step, >= 1.
        hidden_size: units of the state, >= 1.
        dropout: probability of dropping an input feature for a whole sequence, in [0, 1).
        recurrent_dropout: the same for the units of the state that each step's gates read; what the
            update gate keeps of the state is kept whole.
        layer_norm: normalise, per row, the two products before the gates.
        batch_first: whether rows come before steps.

    Shape:
        Inputs ``(L, N, input_size)``, or ``(N, L, input_size)`` with ``batch_first``, or a
        ``PackedSequence``; the state is ``(1, N, hidden_size)``. The outputs have ``hidden_size``
        features.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``forward``: inputs without three axes, or lengths that do not fit them.

    Source:
        Cho et al. 2014, arXiv:1406.1078; Gal, Ghahramani 2016, arXiv:1512.05287; Ba et al. 2016,
        arXiv:1607.06450.

    Example:
        >>> layer = VariationalGRU(8, 16, dropout=0.2, layer_norm=True)
        >>> outputs, state = layer(torch.randn(10, 4, 8))
        >>> outputs.shape, torch.equal(outputs[-1], state[0])
        (torch.Size([10, 4, 16]), True)
    """

    _torch_layer = nn.GRU

    def _initial(self, projected: Tensor, hx: Any) -> tuple[Tensor, ...]:
        if hx is not None:
            return (hx[0],)
        return (projected.new_zeros(projected.shape[1], self.hidden_size),)

    def _with_biases(self, projected: Tensor) -> Tensor:
        return projected + self.bias_ih_l0

    def _step(self, gates: Tensor, hidden: Tensor, state: Any) -> tuple[Tensor, ...]:
        both = 2 * self.hidden_size  # the reset and the update gate; the rest is the new state
        recurred = self._recurred(hidden) + self.bias_hh_l0
        reset, update = torch.sigmoid(gates[:, :both] + recurred[:, :both]).chunk(2, 1)
        new = torch.tanh(gates[:, both:] + reset * recurred[:, both:])
        return (new + update * (state[0] - new),)

    def _final(self, state: tuple[Tensor, ...]) -> Any:
        return state[0]


def _packed(
    inputs: Tensor, lengths: Tensor, batch_first: bool, *, ordered: bool = False
) -> PackedSequence:
    return pack_padded_sequence(
        inputs, lengths.cpu(), batch_first=batch_first, enforce_sorted=ordered
    )


def _reached(lengths: Tensor, sequence: Tensor) -> Tensor:
    """Which steps ``(L, N, 1)`` belong to a row, and are not its padding."""
    steps = torch.arange(len(sequence), device=sequence.device)
    return (steps[:, None] < lengths.to(sequence.device)).unsqueeze(-1)


def _check_lengths(lengths: Tensor, sequence: Tensor, batch_first: bool) -> None:
    steps, rows = sequence.shape[:2][:: -1 if batch_first else 1]
    if lengths.shape != (rows,) or lengths.is_floating_point():
        raise DataError(
            f"lengths must be whole numbers, one for each of {rows} rows, got "
            f"{lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    least, most = (int(bound) for bound in torch.aminmax(lengths))
    if least < 1 or most > steps:
        raise DataError(
            f"lengths must be in [1, {steps}], got {least} to {most}; drop empty sequences."
        )
