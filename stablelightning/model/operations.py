"""Facts about single aten operations: what draws, what writes, what talks to other processes."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

#: Namespaces whose operations involve other processes: they must run on every rank, every time.
_COLLECTIVE = ("c10d", "_c10d_functional", "c10d_functional", "symm_mem")


@cache
def may_draw(op: OpOverload) -> bool:
    """Whether an operation is tagged as drawing random numbers (it need not, on every call)."""
    return torch.Tag.nondeterministic_seeded in op.tags


@cache
def is_collective(op: OpOverload) -> bool:
    """Whether an operation talks to other processes."""
    return op.namespace in _COLLECTIVE


@cache
def written_arguments(op: OpOverload) -> tuple[int | str, ...]:
    """Positions (names, where keyword-only) of the arguments that an operation writes into."""
    written: list[int | str] = []
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(argument.name if argument.kwarg_only else position)
    return tuple(written)


#: Operations that write over a tensor whatever it held, in place.
_OVERWRITE = ("copy", "exponential", "fill", "normal", "random", "uniform", "zero")


@cache
def overwritten_arguments(op: OpOverload) -> tuple[int | str, ...]:
    """Positions (names, where keyword-only) of the arguments whose old content does not count.

    Example:
        >>> overwritten_arguments(torch.ops.aten.tanh.out)
        ('out',)
        >>> overwritten_arguments(torch.ops.aten.add_.Tensor)
        ()
    """
    written = written_arguments(op)
    if operation_name(op) in _OVERWRITE:
        return written
    return tuple(key for key in written if isinstance(key, str))


@cache
def _running_statistics(op: OpOverload) -> tuple[int, int, int] | None:
    """Positions of (running mean, running variance, training) where a norm hides what it writes."""
    names = [a.name for a in op._schema.arguments]
    training = next((n for n in ("training", "train", "use_input_stats") if n in names), None)
    if "running_mean" not in names or training is None:
        return None
    return names.index("running_mean"), names.index("running_var"), names.index(training)


def written_tensors(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that this call writes into, running statistics of norms in training included."""
    found: list[Tensor] = []
    for key in written_arguments(op):
        at = args[key] if isinstance(key, int) and key < len(args) else None
        value = kwargs.get(key) if isinstance(key, str) else at
        values = value if isinstance(value, list | tuple) else (value,)
        found += [v for v in values if isinstance(v, Tensor)]
    hidden = _running_statistics(op)
    if hidden is not None and len(args) > hidden[2] and args[hidden[2]]:
        found += [a for a in (args[hidden[0]], args[hidden[1]]) if isinstance(a, Tensor)]
    return found


def storage_key(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor: the same for all its views, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


# ---- what an operation does to the signal ------------------------------------------------------

_KINDS = {
    # The same numbers in another shape, order or memory.
    "view": """
        _conj _nested_view_from_buffer _reshape_alias _to_copy _unsafe_view alias
        broadcast_to channel_shuffle clone constant_pad_nd contiguous detach expand
        expand_as flatten flip lift_fresh movedim native_channel_shuffle pad permute
        pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d repeat
        replication_pad1d replication_pad2d reshape roll rot90 squeeze t to transpose
        unflatten unsqueeze view view_as
    """,
    # Some of the numbers.
    "slice": """
        _unsafe_index as_strided chunk diagonal gather im2col index index_select
        masked_select narrow select slice split split_with_sizes take unbind unfold
        unsafe_chunk unsafe_split unsafe_split_with_sizes
    """,
    "cat": """
        _pack_padded_sequence _pad_packed_sequence cat concat copy hstack index_put
        select_scatter slice_scatter stack vstack
    """,
    "pool": """
        _adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d
        _upsample_bicubic2d_aa _upsample_bilinear2d_aa adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d amax amin avg_pool1d avg_pool2d avg_pool3d grid_sampler_2d
        logsumexp max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices
        mean min mkldnn_max_pool2d sum topk upsample_bicubic2d upsample_bilinear2d
        upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
        upsample_trilinear3d
    """,
    # Numbers that say how large others are.
    "statistic": "frobenius_norm linalg_vector_norm norm std std_mean var var_mean",
    "norm": """
        _batch_norm_no_update _batch_norm_with_update _fused_rms_norm
        _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm
        cudnn_batch_norm group_norm instance_norm layer_norm miopen_batch_norm
        native_batch_norm native_group_norm native_layer_norm rms_norm
    """,
    "dropout": "alpha_dropout bernoulli dropout feature_dropout native_dropout",
    "matmul": """
        _addmm_activation _grouped_mm _scaled_mm _sparse_mm _trilinear addbmm addmm addmv
        baddbmm bilinear bmm dot einsum linear matmul mkldnn_linear mm mv
    """,
    "convolution": """
        _conv_depthwise2d _convolution _slow_conv2d_forward conv1d conv2d conv3d
        conv_depthwise3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
        convolution_overrideable cudnn_convolution mkldnn_convolution slow_conv3d
        slow_conv_dilated2d slow_conv_transpose2d thnn_conv2d
    """,
    "embedding": "_embedding_bag _embedding_bag_forward_only embedding embedding_bag",
    "attention": """
        _flash_attention_forward _native_multi_head_attention
        _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps
        _scaled_dot_product_cudnn_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention
    """,
    "softmax": "_log_softmax _safe_softmax _softmax log_softmax softmax",
    "glu": "glu",
    "recurrent": "_cudnn_rnn gru lstm mkldnn_rnn_layer rnn_relu rnn_tanh",
    "add": "__add__ add rsub sub subtract",
    "multiply": "div divide mul multiply true_divide",
    # Pointwise without carrying the tag.
    "pointwise": "_prelu_kernel hardswish log_sigmoid_forward prelu rrelu_with_noise",
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}


@cache
def operation_name(op: OpOverload) -> str:
    """An operation's name without namespace, overload and the mark of writing in place."""
    name = op._schema.name.partition("::")[2]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


@cache
def operation_kind(op: OpOverload) -> str:
    """What an operation does to the signal that runs through it.

    Returns:
        One of ``view``, ``slice``, ``cat``, ``pool``, ``statistic``, ``norm``, ``dropout``,
        ``matmul``, ``convolution``, ``embedding``, ``attention``, ``softmax``, ``glu``,
        ``recurrent``, ``add`` and ``multiply`` (both of which are pointwise as well),
        ``pointwise``, ``draw`` or ``other``.

    Example:
        >>> operation_kind(torch.ops.aten.relu_.default), operation_kind(torch.ops.aten.bmm.default)
        ('pointwise', 'matmul')
    """
    known = _KIND_OF.get(operation_name(op))
    if known is not None:
        return known
    if torch.Tag.pointwise in op.tags or (written_arguments(op) and _has_pointwise_sibling(op)):
        return "pointwise"
    return "draw" if may_draw(op) else "other"


def _has_pointwise_sibling(op: OpOverload) -> bool:
    """Whether the same operation, out of place, is tagged: not all that write in place are."""
    packet = getattr(getattr(torch.ops, op.namespace), operation_name(op), None)
    overloads = [] if packet is None else [getattr(packet, name) for name in packet.overloads()]
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)
