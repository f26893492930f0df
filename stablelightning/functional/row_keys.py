"""A number for each row of a batch, by which the row is known again."""

import torch
from torch import Tensor

from stablelightning.errors import DataError

#: Odd constants of a well tried 64-bit mixer: every bit of a word reaches every bit of its product.
_MIX = (-4658895280553007687, -7723592293110705685)
#: Coefficients of a row's words are drawn once and for all: keys are kept in checkpoints.
_SEED = 0x5EED
_WORD = 8


def row_keys(*tensors: Tensor) -> Tensor:
    """A 64-bit key for each row: equal rows have equal keys, different ones as good as never.

    The keys depend on the bits of the rows alone: not on the batch, the device or the process.

    Args:
        tensors: ``(N, ...)`` each, of any dtype; together they are the rows.

    Returns:
        ``(N,)`` int64, on the CPU.

    Raises:
        DataError: there is no tensor, or they differ in their number of rows.

    Source:
        The mixer is that of Steele et al. 2014, "Fast splittable pseudorandom number generators".

    Example:
        >>> keys = row_keys(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
        (True, False)
    """
    rows = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(rows) != 1:
        raise DataError(
            "rows are known by tensors with a common first axis, got "
            f"{[tuple(tensor.shape) for tensor in tensors]}; pass those that hold the rows."
        )
    words = torch.cat([_words(tensor) for tensor in tensors], dim=1)
    generator = torch.Generator().manual_seed(_SEED)
    bounds = torch.iinfo(torch.int64)
    drawn = torch.randint(bounds.min, bounds.max, (2, words.shape[1]), generator=generator)
    # Words are mixed before they are multiplied: floats that are small whole numbers have nothing
    # but zeros in their low bits, and products of those would keep the zeros.
    return mixed_bits((mixed_bits(words + drawn[0]) * (drawn[1] | 1)).sum(1))


def mixed_bits(words: Tensor) -> Tensor:
    """Mix the bits of 64-bit words: a permutation of all words that leaves nothing in its place.

    Args:
        words: any shape, int64.

    Returns:
        The same shape, int64; different words stay different.

    Source:
        As :func:`row_keys`.

    Example:
        >>> mixed_bits(torch.tensor([0, 1, 2])).unique().numel()
        3
    """
    words = (words ^ shifted_right(words, 30)) * _MIX[0]
    words = (words ^ shifted_right(words, 27)) * _MIX[1]
    return words ^ shifted_right(words, 31)


def shifted_right(words: Tensor, by: int) -> Tensor:
    """Shift to the right with zeros coming in, as of unsigned numbers.

    Torch's own shift copies the sign: with it, a word and its complement would be mixed alike.

    Args:
        words: any shape, int64.
        by: bits, 1 to 63.

    Example:
        >>> shifted_right(torch.tensor([-1, 6]), 63).tolist()
        [1, 0]
    """
    return (words >> by) & ((1 << (64 - by)) - 1)


def _words(tensor: Tensor) -> Tensor:
    """The bytes of each row as whole 64-bit words, zeros behind the last one."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(len(tensor), -1).contiguous()
    if flat.shape[1] == 0:
        return torch.zeros(len(tensor), 1, dtype=torch.int64)
    as_bytes = flat.view(torch.uint8)
    missing = -as_bytes.shape[1] % _WORD
    return torch.nn.functional.pad(as_bytes, (0, missing)).contiguous().view(torch.int64)
