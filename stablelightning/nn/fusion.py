"""Joining towers of unlike scale, so that none drowns the others from the first step on."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.errors import DataError, RecipeError

#: A tower whose root mean square is below this is silent (its last layer starts at zero), and its
#: scale stays one: dividing by what it happens to give would amplify rounding.
SILENT = 1e-8


class BalancedFusion(nn.Module):
    """Brings the outputs of several towers to one scale, weights them, and joins them.

    Each output is multiplied by ``weight / scale``. The scales are measured once, the root mean
    square of each tower's output over the first batch in training, or over what :meth:`measure` is
    given; the weights start at one and are learned. So the effective weights start where the towers
    are equally loud, and an optimizer's step changes each by the same share, whatever its scale.

    The scales are buffers: they go into checkpoints, and a resumed run does not measure again.
    Under distributed training they are measured over the batches of all processes, which must reach
    their first training forward together. An output that is not finite is not measured; the next
    batch is.

    Args:
        towers: number of outputs to join, >= 2.
        dim: axis along which they are joined, 1 for features and for channels, -1 for tokens;
            ``None`` adds outputs of equal shape, and divides by ``sqrt(towers)`` to keep the scale.

    Attributes:
        weight: learned, ``(towers,)``; ones at the start.
        scale: buffer ``(towers,)``, > 0, in units of the outputs; ones until measured.
        measured: buffer, a boolean scalar.

    Shape:
        ``towers`` tensors that may differ along ``dim`` only, to one tensor.

    Raises:
        RecipeError: ``towers`` is below two.
        DataError: from ``forward``: another number of outputs.

    Source:
        Mishkin, Matas 2016, arXiv:1511.06422 (scales measured on the first batch, applied here to
        towers instead of layers).

    Example:
        >>> fusion = BalancedFusion(2).train()
        >>> loud, quiet = 100 * torch.randn(64, 8), 0.01 * torch.randn(64, 24)
        >>> joined = fusion(loud, quiet)
        >>> joined.shape, bool((joined.std(0) - 1).abs().max() < 0.5)
        (torch.Size([64, 32]), True)
    """

    scale: Tensor
    measured: Tensor

    def __init__(self, towers: int = 2, *, dim: int | None = 1) -> None:
        super().__init__()
        if towers < 2:
            raise RecipeError(f"towers must be >= 2, got {towers}; one tower needs no fusion.")
        self.towers = towers
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(towers))
        self.register_buffer("scale", torch.ones(towers))
        self.register_buffer("measured", torch.tensor(False))
        # What the buffer said when it was last read: reading it waits for the device.
        self._is_measured = False

    def forward(self, *outputs: Tensor) -> Tensor:
        """Join the towers' outputs, in the same order on every call."""
        self._check(outputs)
        if self.training and not self._is_measured:
            self._measure_once(outputs)
        # In full precision, however coarse the outputs: their scales may lie far apart.
        factors = self.weight.float() / self.scale.float()
        if self.dim is None:
            factors = factors / math.sqrt(self.towers)
        scaled = [o * f.to(o.dtype) for o, f in zip(outputs, factors.unbind(), strict=True)]
        return torch.cat(scaled, self.dim) if self.dim is not None else sum(scaled[1:], scaled[0])

    @torch.no_grad()
    def measure(self, *outputs: Tensor) -> Tensor:
        """Take the scales from these outputs, whether measured before or not.

        For a start from more than the first batch: pass each tower's output on a larger one. On
        several processes all of them must call it.

        Returns:
            The scales ``(towers,)``.

        Raises:
            DataError: another number of outputs, or one that is not finite.

        Example:
            >>> fusion = BalancedFusion(2)
            >>> fusion.measure(torch.full((4, 3), 50.0), torch.full((4, 2), 0.5))
            tensor([50.0000,  0.5000])
        """
        self._check(outputs)
        levels = _root_mean_squares(outputs)
        if not bool(levels.isfinite().all()):
            raise DataError(
                f"the outputs of towers must be finite to be measured, got root mean squares "
                f"{levels.tolist()}; check the inputs of that tower."
            )
        self._set(levels)
        return self.scale

    def _measure_once(self, outputs: tuple[Tensor, ...]) -> None:
        if not bool(self.measured):
            levels = _root_mean_squares(outputs)
            if not bool(levels.isfinite().all()):
                return
            self._set(levels)
        self._is_measured = True

    @torch.no_grad()
    def _set(self, levels: Tensor) -> None:
        self.scale.copy_(torch.where(levels < SILENT, 1.0, levels))
        self.measured.fill_(True)
        self._is_measured = True

    def _check(self, outputs: tuple[Tensor, ...]) -> None:
        if len(outputs) != self.towers:
            raise DataError(
                f"this fusion joins {self.towers} towers, got {len(outputs)} outputs; "
                "pass one tensor per tower."
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_measured = False  # the buffer says it

    def extra_repr(self) -> str:
        """The settings."""
        return f"towers={self.towers}, dim={self.dim}"


@torch.no_grad()
def _root_mean_squares(outputs: tuple[Tensor, ...]) -> Tensor:
    """Root mean square ``(towers,)`` of each output, over the rows of all processes."""
    sums = torch.stack([output.detach().float().square().sum() for output in outputs])
    counts = sums.new_tensor([output.numel() for output in outputs])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        together = torch.stack([sums, counts])
        torch.distributed.all_reduce(together)
        sums, counts = together.unbind()
    return (sums / counts).sqrt()
