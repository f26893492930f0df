"""Modules as users write them: the ways in which a network is random."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """Dropout as a function that follows the module's own flag."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p = p
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.dropout(self.body(x).relu(), self.p, training=self.training))


class OtherOutputInTraining(Functional):
    """Its flag also changes what comes out."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, y.mean()) if self.training else y


class StatisticsInTraining(Functional):
    """Its flag also moves a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.lerp_(x.mean(0), 0.1)
        return super().forward(x - self.seen)


class Attention(nn.Module):
    """nn.MultiheadAttention, with or without its weights."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return self.head(y.mean(1))


class OwnAttention(nn.Module):
    """Attention dropout that only its owner's flag switches on."""

    def __init__(self, *, is_causal: bool = False) -> None:
        super().__init__()
        self.p = 0.3
        self.is_causal = is_causal
        self.query = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, x, x, dropout_p=p, is_causal=self.is_causal)
        return self.head(y.mean(1))


class Encoder(nn.Module):
    """A recurrent network in the deterministic prefix of a Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 8, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.recurrent(x)[0]).mean(1))


class Recurrent(nn.Module):
    """Dropout between the layers of a fused recurrent kernel."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.recurrent = kind(4, 8, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class PythonLoop(nn.Module):
    """One dropout, used in a loop of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.drop(layer(x).relu()) + x
        return x


class OneDropout(nn.Module):
    """A layer, whatever is put between, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.body, self.drop = nn.Linear(8, 4), nn.Dropout(0.5)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.drop(self.between(self.body(x)))


class Latent(nn.Module):
    """Random in eval too: a latent that is drawn around a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.head = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return self.head(mean + torch.randn_like(mean))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Structured(nn.Module):
    """A pytree in, another pytree out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(8, 4), nn.Dropout(0.5)

    def forward(self, image: dict[str, Tensor], *, pair: tuple[Tensor, ...]) -> dict[str, Any]:
        x = self.body(image["pixels"] + sum(pair))
        y = self.drop(x)
        return {"plain": x, "pair": Pair(y, y * 2), "deep": [(y.sum(1),), {"name": "same"}]}


class HyperNetwork(nn.Module):
    """Makes the weights of its layer from the input, on every call anew."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.drop = nn.Linear(8, 32), nn.Dropout(0.3)
        self.body = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.maker(x.mean(0)).view(4, 8)
        return self.drop(torch.func.functional_call(self.body, {"weight": weight}, (x,)))


class Masked(OneDropout):
    """A shape that depends on the data, in the prefix."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        chosen = h[h[:, 0] > h[:, 0].median()]
        return self.drop(h + chosen.mean(0))


class Branches(OneDropout):
    """Goes where the sample says: control flow that depends on what was drawn."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.exp() if y.sum() > 0 else y


class SubtractsMean(OneDropout):
    """Rows that influence each other."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(0)


class KeepsNorm(OneDropout):
    """Rows that influence each other only through what is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        y = self.drop(h)
        return y * (h.norm() / y.norm().clamp(min=1e-3))


class SharedMask(nn.Module):
    """One mask for all rows of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(8, 16), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h * self.drop(torch.ones_like(h[:1]))


class AcrossRows(nn.Module):
    """Attention among the rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[None], x[None], x[None])[0][0]


class Compiled(nn.Module):
    """A compiled part of a model that is not."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3))
        self.body = torch.compile(body, backend="eager")
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class MasksPadding(Encoder):
    """A Transformer that is told which steps are padding."""

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        padding[0, 3:] = True
        y = self.encoder(self.recurrent(x)[0], src_key_padding_mask=padding)
        return self.head(y.mean(1))


class LooksBack(Encoder):
    """A Transformer whose steps see only what came before."""

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.encoder(self.recurrent(x)[0], mask=mask, is_causal=True).mean(1))


class LockedDropout(OneDropout):
    """Dropout as it was written for language models: one mask, filled in place."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return h * h.data.new(1, h.shape[1]).bernoulli_(0.5) * 2


class Distributions(OneDropout):
    """Draws through torch.distributions, in eval too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        normal = torch.distributions.Normal(h, h.exp())
        return normal.rsample() + torch.distributions.Bernoulli(logits=h).sample()


class Gumbel(OneDropout):
    """Chooses at random, by a draw in place into new memory."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gumbel_softmax(self.body(x))


class TimeFirst(nn.Module):
    """Steps on the first axis, rows on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.drop = nn.LSTM(8, 4), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.recurrent(x)[0])


class Forces(nn.Module):
    """Differentiates its own prefix, as networks of energies do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).sum(), x)
        return self.drop(force)


class Graph(OneDropout):
    """Mixes rows by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("neighbours", torch.eye(3).roll(1, 0).to_sparse())

    def between(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.neighbours, x).relu()


class Ragged(nn.Module):
    """Steps of different number, packed on the way into a recurrent prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.drop = nn.LSTM(4, 8, batch_first=True), nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.head(self.drop(y).mean(1))
