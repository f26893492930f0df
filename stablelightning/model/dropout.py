"""Dropout for networks that were built without it, so that Monte Carlo dropout can sample them."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.dropout_rate import checked_batches, on_device_of, score_rates
from stablelightning.model.inputs import spread
from stablelightning.model.structure import find_blocks, find_heads, weight_layers

Where = Literal["head", "blocks"]

#: Rate where none is given and no data chooses one: mild enough for a network trained without it.
DEFAULT_RATE = 0.1

_CHILD = "added_dropout"


class AddedDropout(nn.Dropout):
    """What :func:`add_dropout` inserts; a plain ``nn.Dropout`` to whoever looks for one.

    Feature maps of a convolution lose whole channels: the neighbours of a pixel say what the pixel
    said, so that dropping single ones removes little. Everything else (features, tokens, maps with
    their channels last) is dropped value by value.

    Args:
        p: share of the values that become zero in training, in [0, 1); the rest are scaled by
            1/(1-p).
        dims: spatial dimensions of the convolutions beside it, 1 to 3; 0 where there are none, and
            everything is dropped value by value.
        widths: channel and feature counts of the layers beside it. An input whose last dimension is
            one of them, and whose dimension 1 is not, has its channels last.

    Attributes:
        nll_by_rate: validation negative log-likelihood in nats by rate, where data chose ``p``.

    Source:
        Srivastava et al. 2014, JMLR 15 (dropout); Tompson et al. 2015, arXiv:1411.4280 (channels).

    Example:
        >>> dropped = AddedDropout(0.5, dims=2).train()(torch.ones(1, 8, 4, 4))
        >>> {channel.unique().numel() for channel in dropped[0]}  # all 0 or all 2
        {1}
    """

    def __init__(self, p: float, *, dims: int = 0, widths: Iterable[int] = ()) -> None:
        super().__init__(p)
        self.dims = dims
        self.widths = tuple(sorted(set(widths)))
        self.nll_by_rate: dict[float, float] = {}
        # Kept for the pickle: torch numbers hooks from zero in every process, and only a handle
        # that travels with its hook keeps a later hook from taking its number and its place.
        self._handle: RemovableHandle | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels or values of ``input`` in training; in eval return it as it is."""
        if not self.training or self.p == 0:
            return input
        if not self._has_channels_first(input.shape):
            return nn.functional.dropout(input, self.p, training=True)
        ones = input.new_ones((*input.shape[:2], *(1 for _ in input.shape[2:])))
        return input * nn.functional.dropout(ones, self.p, training=True)

    def _has_channels_first(self, shape: torch.Size) -> bool:
        if self.dims == 0 or len(shape) != self.dims + 2:
            return False
        return shape[1] in self.widths or shape[-1] not in self.widths

    def extra_repr(self) -> str:
        """The rate, and the spatial dimensions where channels are dropped."""
        return f"p={self.p:g}" + (f", dims={self.dims}" if self.dims else "")

    def drop_input_of(self, layer: nn.Module) -> None:
        """Act on what goes into ``layer`` from now on, as a child of it."""
        self._move_into(layer)
        self._handle = layer.register_forward_pre_hook(_DropInput(self), with_kwargs=True)

    def drop_output_of(self, block: nn.Module) -> None:
        """Act on what comes out of ``block`` from now on, as a child of it.

        A ``Sequential`` would run one more child: there the last weight layer inside takes it in.
        """
        home = block
        if isinstance(block, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            home = weight_layers(block)[-1]
        self._move_into(home)
        self._handle = block.register_forward_hook(_DropOutput(self))

    def _move_into(self, home: nn.Module) -> None:
        home.add_module(_CHILD, self)
        self.train(home.training)

    def withdraw(self) -> None:
        """Stop acting."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _is_signal(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class _DropInput:
    """A class and not a closure, so that models pickle and copies drop by their own module."""

    def __init__(self, dropout: AddedDropout) -> None:
        self.dropout = dropout

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for position, value in enumerate(args):
            if _is_signal(value):
                return (*args[:position], self.dropout(value), *args[position + 1 :]), kwargs
        for name, value in kwargs.items():
            if _is_signal(value):
                return args, {**kwargs, name: self.dropout(value)}
        return args, kwargs


class _DropOutput:
    def __init__(self, dropout: AddedDropout) -> None:
        self.dropout = dropout

    def __call__(self, block: nn.Module, args: Any, output: Any) -> Any:
        if _is_signal(output):
            return self.dropout(output)
        if type(output) in (tuple, list) and output and _is_signal(output[0]):
            return type(output)((self.dropout(output[0]), *output[1:]))
        raise ModelError(
            f"dropout after a block needs a tensor, or a tuple that starts with one, and "
            f"{type(block).__name__} gave {type(output).__name__}; use where='head'."
        )


def add_dropout(
    model: nn.Module,
    p: float | None = None,
    where: Where = "head",
    *,
    example: Any = None,
    data: Iterable[Any] | None = None,
    task: str = "auto",
) -> nn.Module:
    """Insert dropout into ``model``, in place, so that :func:`mc_dropout` has something to sample.

    For backbones that have none, such as every ResNet of torchvision. Parameters, buffers, the keys
    of the state dict, training flags and outputs in eval stay as they are; the model can be copied,
    pickled and given to an optimizer as before. A second call replaces what the first one added.

    Dropout that was not there in training is an approximation: the weights never learned to live
    with it, so the spread of the samples is a statement about this rate as much as about the model.
    Let data choose the rate, compare the scores with and without, and prefer to train or fine-tune
    with the dropout in place.

    Args:
        model: the network, or a LightningModule around it; changed in place. Not yet compiled.
        p: dropout rate in [0, 1). ``None`` is :data:`DEFAULT_RATE`, or the choice of ``data``.
        where: ``"head"`` drops the input of the last weight layers, which is cheap to sample and
            leaves the features fixed; ``"blocks"`` drops the output of every repeated block (but
            for one that holds a head), which says more and costs a full pass per sample.
        example: inputs of one batch as :func:`mc_dropout` takes them. With it heads and blocks are
            found by following the data, without it by convention (see :func:`find_heads`).
        data: validation batches ``(inputs, target)``. The rate of
            :data:`~stablelightning.model.dropout_rate.RATES` with the lowest
            negative log-likelihood under MC dropout is taken, and the table of all of them kept in
            ``nll_by_rate`` of every :class:`AddedDropout`.
        task: the task that ``data`` is scored by, as in :func:`mc_dropout`.

    Returns:
        ``model`` itself.

    Raises:
        RecipeError: ``p`` outside [0, 1), or given beside ``data``; an unknown ``where``.
        ModelError: no head or no blocks there, or a compiled or scripted model.
        DataError: ``data`` is empty, or its batches are not ``(inputs, target)``.

    Source:
        Gal, Ghahramani 2016, arXiv:1506.02142 (the rate chosen by validation likelihood); Tompson
        et al. 2015, arXiv:1411.4280 (whole channels of convolution maps).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> keys = list(net.state_dict())
        >>> add_dropout(net, 0.2)[3]
        Linear(
          in_features=288, out_features=10, bias=True
          (added_dropout): AddedDropout(p=0.2)
        )
        >>> list(net.state_dict()) == keys
        True
    """
    rate = _checked_rate(p, data)
    if where not in get_args(Where):
        raise RecipeError(f"where must be 'head' or 'blocks', got {where!r}.")
    _refuse_compiled(model)
    first, batches = (None, None) if data is None else checked_batches(data)
    example = first if example is None else example
    run = None if example is None else _runner(model, example)
    heads = find_heads(model, run)
    blocks = _blocks_without(heads, model, run) if where == "blocks" else []
    remove_dropout(model)
    for block in blocks:
        AddedDropout(rate, **_layout(block, "out_channels", "out_features")).drop_output_of(block)
    for head in heads if where == "head" else []:
        AddedDropout(rate, **_layout(head, "in_channels")).drop_input_of(head)
    if batches is not None:
        _choose_rate(model, batches, task)
    return model


def added_dropouts(model: nn.Module) -> dict[str, AddedDropout]:
    """What :func:`add_dropout` inserted into ``model``, by name; empty where it did not.

    Example:
        >>> net = add_dropout(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), p=0.2)
        >>> added_dropouts(net)
        {'2.added_dropout': AddedDropout(p=0.2)}
    """
    return {n: m for n, m in model.named_modules() if isinstance(m, AddedDropout)}


def remove_dropout(model: nn.Module) -> nn.Module:
    """Take out, in place, what :func:`add_dropout` inserted; the model's own dropout stays.

    Returns:
        ``model`` itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> remove_dropout(add_dropout(net))[2]
        Linear(in_features=8, out_features=3, bias=True)
    """
    for home in list(model.modules()):
        dropout = getattr(home, _CHILD, None)
        if isinstance(dropout, AddedDropout):
            dropout.withdraw()
            delattr(home, _CHILD)
    return model


def _checked_rate(p: float | None, data: Any) -> float:
    if p is None:
        return DEFAULT_RATE
    if data is not None:
        raise RecipeError(
            f"p must be left out where data chooses it, got {p!r} beside data; drop one of the two."
        )
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise RecipeError(f"p must be a rate in [0, 1), got {p!r}; {DEFAULT_RATE} is a mild start.")
    return float(p)


def _refuse_compiled(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"dropout needs a model in Python, and {name or 'this one'} is a TorchScript "
                "module; add it before scripting."
            )
        # The first is what torch.compile(model) returns, the second what model.compile() leaves.
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if compiled:
            raise ModelError(
                f"dropout must be added before torch.compile, and {name or 'this model'} is "
                "compiled already, without it; call add_dropout first and compile then."
            )


def _runner(model: nn.Module, inputs: Any) -> Callable[[], Any]:
    args, kwargs = spread(on_device_of(model, inputs))
    return lambda: model(*args, **kwargs)


def _blocks_without(
    heads: list[nn.Module], model: nn.Module, run: Callable[[], Any] | None
) -> list[nn.Module]:
    """The blocks of ``model`` whose output is not the prediction itself."""
    blocks = find_blocks(model, run)
    inside = [b for b in blocks if not any(h is m for h in heads for m in b.modules())]
    if not inside:
        raise ModelError(
            f"where='blocks' needs modules of one class repeated side by side, and "
            f"{type(model).__name__} has none before its head; use where='head', or put nn.Dropout "
            "between its layers."
        )
    return inside


def _layout(module: nn.Module, *widths: str) -> dict[str, Any]:
    """What :class:`AddedDropout` needs to know to tell channels from everything else."""
    layers = weight_layers(module)
    dims = max((len(m.kernel_size) for m in layers if isinstance(m, _ConvNd)), default=0)
    return {
        "dims": dims,
        "widths": {getattr(m, w) for m in layers for w in widths if hasattr(m, w)},
    }


def _choose_rate(model: nn.Module, batches: Iterable[Any], task: str) -> None:
    added = added_dropouts(model).values()

    def set_rate(rate: float) -> None:
        for dropout in added:
            dropout.p = rate

    try:
        table = score_rates(model, batches, set_rate, task=task)
    except BaseException:
        remove_dropout(model)  # no half-made model under an error
        raise
    set_rate(min(table, key=table.__getitem__))
    for dropout in added:
        dropout.nll_by_rate = dict(table)
