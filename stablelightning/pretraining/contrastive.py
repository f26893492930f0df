"""Contrastive pretraining: features by which two views of one image find each other."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.functional.contrastive import alignment, partner_logits, uniformity
from stablelightning.model.preprocessing import preprocessing_of
from stablelightning.nn.augment import ImageViews, RowViews
from stablelightning.pretraining.base import Pretraining

#: A batch of fewer rows, on all processes together, has nothing to tell a row from.
_FEWEST_ROWS = 2


class SimCLR(Pretraining):
    """Pretrain a network to tell which two views were drawn from the same row.

    Two random views of every row go through the network and a projection of two layers with batch
    norm, which is thrown away afterwards; the loss is NT-Xent, against all other rows of the batch
    on all processes. Large batches help (256 and more for photographs), and so does long training.

    Beside the loss are logged ``top1`` (share of the views whose partner is the most alike of all;
    chance is one over the number of the others), ``alignment`` (mean squared distance of partners,
    in [0, 4]) and ``uniformity`` (at most 0; near 0 all embeddings have collapsed into one point).
    In validation a row is told from those of its own batch and process only.

    Args:
        network: gives features, or has a classifier behind them, which is taken off. Any input:
            images ``(N, C, height, width)``, rows, sequences.
        temperature: of the similarities, > 0; smaller ones look at the most alike of the others.
        embedding: length of the embeddings that are compared, >= 1.
        hidden: width of the projection's inner layer, >= 1; ``None`` for that of the features, and
            128 at least.
        views: module that draws a view of each row of a batch, such as
            :class:`~stablelightning.nn.augment.ImageViews`; ``None`` for that where there are
            images, else :class:`~stablelightning.nn.augment.RowViews`.
        **kwargs: ``keep_head`` of :class:`~stablelightning.pretraining.base.Pretraining`,
            ``optimizer``, ``scheduler``, ... of :class:`~stablelightning.mixin.StableMixin`.

    Raises:
        RecipeError: a setting is out of its range.
        ModelError: ``network`` is not a module, is a LightningModule, or has no weights.

    Source:
        Chen et al. 2020, arXiv:2002.05709; alignment and uniformity: Wang, Isola 2020,
        arXiv:2005.10242.

    Example:
        >>> from stablelightning.nn import ConvNet
        >>> module = SimCLR(ConvNet(1, 10))
        >>> batch = torch.randn(6, 1, 8, 8)
        >>> sorted(module.loss(module.ready(batch)))
        ['alignment', 'loss', 'top1', 'uniformity']
    """

    objective: ClassVar[str] = "contrastive"

    def __init__(
        self,
        network: nn.Module,
        *,
        temperature: float = 0.5,
        embedding: int = 128,
        hidden: int | None = None,
        views: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if not temperature > 0:
            raise RecipeError(
                f"temperature must be > 0, got {temperature}; 0.5 is usual, 0.1 is hard."
            )
        check_whole("embedding", embedding, least=1)
        if hidden is not None:
            check_whole("hidden", hidden, least=1)
        super().__init__(network, **kwargs)
        self.temperature = temperature
        self.embedding = embedding
        self.hidden = hidden
        self.views = views

    def build(self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...]) -> None:
        """Make the projection, and the views where none were given."""
        features = feature_shape[-1] if len(feature_shape) < 3 else feature_shape[0]
        hidden = self.hidden or max(features, self.embedding)
        self.projection = nn.Sequential(
            nn.Linear(features, hidden, bias=False),  # the norm has a bias of its own
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.embedding, bias=False),
            nn.BatchNorm1d(self.embedding, affine=False),
        )
        if self.views is None:
            self.views = ImageViews(zero=self._black()) if len(input_shape) == 3 else RowViews()

    def loss(self, batch: Any) -> dict[str, Tensor] | None:
        """NT-Xent of two views of the batch; ``None`` where there is only one row."""
        inputs = self.inputs(batch)
        gather = self.training
        if len(inputs) * (self._processes() if gather else 1) < _FEWEST_ROWS:
            return None
        assert self.views is not None
        with torch.no_grad():
            both = torch.cat([self.views(inputs), self.views(inputs)])
        first, second = self.embeddings(both).chunk(2)
        logits, partners, share = partner_logits(
            first, second, temperature=self.temperature, gather=gather
        )
        parts = {"loss": F.cross_entropy(logits, partners) * share}
        with torch.no_grad():
            parts["top1"] = (logits.argmax(1) == partners).float().mean()
            parts["alignment"] = alignment(first, second)
            if len(first) > 1:
                parts["uniformity"] = uniformity(first)
        return parts

    def embeddings(self, inputs: Tensor) -> Tensor:
        """What is compared, ``(N, embedding)``: the projection of the features."""
        projected: Tensor = self.projection(self.vectors(inputs))
        return projected

    def _processes(self) -> int:
        return self.trainer.world_size if self._trainer is not None else 1

    def _black(self) -> float:
        """What black is in the units of the inputs, for changes of brightness.

        Where the data module says how it standardizes images, or else the network how it wants
        them; 0 where neither does.
        """
        data = getattr(self._trainer, "datamodule", None)
        known: Any = data if hasattr(data, "mean") and hasattr(data, "std") else None
        known = known or preprocessing_of(self.network)
        if known is None or known.mean is None or known.std is None:
            return 0.0
        mean, std = torch.tensor(known.mean).double(), torch.tensor(known.std).double()
        return float((-mean / std).mean())
