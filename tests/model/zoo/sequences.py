"""Hand-made networks for sequences: recurrent ones, and attention as people write it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecurrentClassifier(nn.Module):
    """Tokens to classes by an LSTM or GRU."""

    def __init__(self, kind: type[nn.RNNBase], *, layers: int = 1, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.recurrent = kind(width, width, num_layers=layers, batch_first=True)
        self.fc = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.recurrent(self.embedding(tokens))
        return self.fc(outputs[:, -1])


class Unrolled(nn.Module):
    """A cell called in a loop, with a layer before it that runs once a step."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.read = nn.Linear(width, width)
        self.cell = nn.GRUCell(width, width)
        self.fc = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.cell.hidden_size)
        for step in x.unbind(1):
            state = self.cell(F.relu(self.read(step)), state)
        return self.fc(state)


class RootMeanSquareNorm(nn.Module):
    """Written out, as in most language models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (x.float() * scale).type_as(x) * self.weight


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, width, bias=False)
        self.wv = nn.Linear(width, width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, width = x.shape
        q, k, v = (
            layer(x).view(rows, steps, self.heads, -1).transpose(1, 2)
            for layer in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(mixed.transpose(1, 2).reshape(rows, steps, width))


class SwiGLUBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = RootMeanSquareNorm(width)
        self.attention = CausalAttention(width, heads)
        self.feed_forward_norm = RootMeanSquareNorm(width)
        self.feed_forward = SwiGLU(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class LanguageModel(nn.Module):
    """Pre-norm blocks between an embedding and an output layer of its own."""

    def __init__(self, *, blocks: int = 2, width: int = 32, vocabulary: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(SwiGLUBlock(width, 4) for _ in range(blocks))
        self.norm = RootMeanSquareNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


class AttentionByHand(nn.Module):
    """One projection for queries, keys and values, and a softmax written out."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / math.sqrt(x.shape[-1])
        return self.out((scores.softmax(-1) @ self.value(x)).mean(1))


class SummedAttention(nn.Module):
    """Attention as sums over named axes, behind learned queries."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("qd,ntd->nqt", self.queries, self.key(x)) / x.shape[-1] ** 0.5
        mixed = torch.einsum("nqt,ntd->nqd", scores.softmax(-1), self.value(x))
        return self.out(mixed.mean(1))


class MultiheadClassifier(nn.Module):
    """``nn.MultiheadAttention`` with a skip around it, in front of a head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.read = nn.Linear(8, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head(x.mean(1))


class EncoderClassifier(nn.Module):
    """torch's own encoder layers."""

    def __init__(self, *, layers: int = 2, width: int = 24, norm_first: bool = False) -> None:
        super().__init__()
        self.read = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.read(x)).mean(1))
