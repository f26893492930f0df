"""Layers with rules of their own: recurrent, attention, embedding."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stablelightning.functional.initialize import glorot_, normal_
from stablelightning.functional.orthogonal import orthogonal_
from stablelightning.model.attribution import LayerRole
from stablelightning.model.schemes import Rule

#: An LSTM that remembers at the start: both of torch's biases together.
_FORGET_BIAS = 1.0
#: The forget gate among the four of an LSTM: input, forget, cell, output.
_FORGET_GATE = 1
_LSTM_GATES = 4
#: Wider than this times its input, an attention projection is not three side by side.
_JOINT = 3

Write = Callable[[Tensor], object]


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer or cell of torch.

    Example:
        >>> is_recurrent(nn.GRU(2, 3)), is_recurrent(nn.Linear(2, 3))
        (True, False)
    """
    return isinstance(module, nn.RNNBase | nn.RNNCellBase)


def recurrent_writes(module: nn.RNNBase | nn.RNNCellBase) -> dict[str, Write]:
    """How each parameter of a recurrent layer is filled, by its local name.

    Recurrent weights are orthogonal and input weights Glorot uniform, gate by gate; biases are
    zero, but for the forget gate of an LSTM, whose two biases add up to one.

    Source:
        Le, Jaitly, Hinton 2015, arXiv:1504.00941 (recurrent weights that keep the state's size);
        Jozefowicz, Zaremba, Sutskever 2015, ICML (the forget bias).

    Example:
        >>> cell = nn.LSTMCell(2, 1)
        >>> recurrent_writes(cell)["bias_ih"](cell.bias_ih)
        >>> cell.bias_ih
        Parameter containing:
        tensor([0., 1., 0., 0.], requires_grad=True)
    """
    hidden = module.hidden_size
    is_lstm = isinstance(module, nn.LSTM | nn.LSTMCell)
    writes: dict[str, Write] = {}
    for name, _ in module.named_parameters(recurse=False):
        if name.startswith("weight_hh"):
            writes[name] = lambda weight: _each_gate(weight, hidden, orthogonal_)
        elif name.startswith(("weight_ih", "weight_hr")):
            writes[name] = lambda weight: _each_gate(weight, hidden, glorot_)
        elif name.startswith("bias_ih") and is_lstm:
            writes[name] = lambda bias: _open_forget_gate(bias, hidden)
        elif name.startswith("bias"):
            writes[name] = _zero
    return writes


def _each_gate(weight: Tensor, hidden: int, draw: Write) -> None:
    # A projection (weight_hr) has fewer rows than there are hidden units, and is one matrix.
    for gate in weight.split(hidden if len(weight) % hidden == 0 else len(weight)):
        draw(gate)


@torch.no_grad()
def _open_forget_gate(bias: Tensor, hidden: int) -> None:
    bias.zero_()
    bias[_FORGET_GATE * hidden : (_FORGET_GATE + 1) * hidden] = _FORGET_BIAS


@torch.no_grad()
def _zero(bias: Tensor) -> None:
    bias.zero_()


def attention_writes(module: nn.MultiheadAttention) -> dict[str, Write]:
    """How each parameter of an attention module is filled: queries, keys and values by themselves.

    Example:
        >>> sorted(attention_writes(nn.MultiheadAttention(4, 2)))
        ['in_proj_bias', 'in_proj_weight']
    """
    writes: dict[str, Write] = {}
    for name, _ in module.named_parameters(recurse=False):
        if name == "in_proj_bias":
            writes[name] = _zero
        elif name == "in_proj_weight":
            writes[name] = lambda weight: [glorot_(part) for part in weight.chunk(_JOINT)]
        elif name.endswith("_proj_weight"):
            writes[name] = glorot_
    return writes


def joint_projection_rule(role: LayerRole, weight: Tensor) -> Rule | None:
    """The rule for a linear layer that makes queries, keys and values side by side, if it does."""
    if role.consumer.name != "attention" or role.kind != "linear" or weight.ndim != 2:
        return None
    parts, rest = divmod(weight.shape[0], weight.shape[1])
    if rest or not 1 < parts <= _JOINT:
        return None
    return Rule(
        "Glorot uniform",
        1.0,
        f"{parts} attention projections side by side, each by itself",
        lambda w: [glorot_(part) for part in w.chunk(parts)],
    )


def embedding_rule(role: LayerRole, weight: Tensor) -> Rule:
    """The rule for an embedding: unit size where a layer reads it, small where a stream begins."""
    padding = getattr(role.module, "padding_idx", None)
    width = weight.shape[-1]
    in_stream = role.consumer.normalised or role.consumer.name == "attention"
    in_stream = in_stream or bool({"add", "norm"} & set(role.consumer.route))
    std = 1 / math.sqrt(width) if in_stream else 1.0
    why = (
        "the start of a residual or normalised stream: rows of norm 1"
        if in_stream
        else f"read by a {role.consumer.name} layer: values of variance 1"
    )

    def write(weight: Tensor) -> None:
        normal_(weight, std)
        if padding is not None:
            with torch.no_grad():
                weight[padding].zero_()

    return Rule("normal", std, why, write)
