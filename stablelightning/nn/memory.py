"""An LSTM that keeps what it reads for as long as its sequences are, before any training."""

from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.checks import check_whole
from stablelightning.nn.settings import check_sizes

_LEAST = 3  # a memory that is longer than one step
_INPUT, _FORGET = 0, 1  # places of the gates in torch's biases


class LongMemoryLSTM(nn.LSTM):
    """An ``nn.LSTM`` that remembers over a known number of steps before it has learned anything.

    With torch's biases an LSTM forgets half of its cell at every step, and gradients of what lies
    far back are lost until it has learned to keep it. Here each unit begins with a memory of its
    own length, between one and ``longest`` steps: forget biases are the logarithm of uniform
    numbers in [1, longest - 1], and input biases the negative of them. All other weights are
    torch's, and so is the kernel.

    Args:
        input_size: features of a step, >= 1.
        hidden_size: units of the state, >= 1.
        longest: steps over which something is to be kept, >= 3: the length of the sequences.
        **kwargs: of ``nn.LSTM``.

    Shape:
        As of ``nn.LSTM``.

    Raises:
        RecipeError: a size is out of its range.

    Source:
        Tallec, Ollivier 2018, arXiv:1804.11188 (chrono initialization).

    Example:
        >>> layer = LongMemoryLSTM(2, 32, longest=200, batch_first=True)
        >>> outputs, _ = layer(torch.randn(5, 200, 2))
        >>> outputs.shape, bool((layer.bias_ih_l0[32:64] > 0).all())
        (torch.Size([5, 200, 32]), True)
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, longest: int = 100, **kwargs: Any
    ) -> None:
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_whole(
            "longest",
            longest,
            least=_LEAST,
            hint="it is the number of steps over which something is to be kept",
        )
        self.longest = longest
        super().__init__(input_size, hidden_size, **kwargs)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and the biases for the length of the memory."""
        super().reset_parameters()
        for name, bias in self.named_parameters():
            if name.startswith("bias_hh"):
                bias.zero_()
            elif name.startswith("bias_ih"):
                bias.zero_()
                forget: Tensor = torch.empty_like(bias[: self.hidden_size])
                forget.uniform_(1, self.longest - 1).log_()
                self._gate(bias, _FORGET).copy_(forget)
                self._gate(bias, _INPUT).copy_(-forget)

    def _gate(self, bias: Tensor, gate: int) -> Tensor:
        return bias[gate * self.hidden_size : (gate + 1) * self.hidden_size]
