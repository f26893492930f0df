"""The faults: modules, surgery and batches that make a healthy model sick."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.model.zoo import patients as p
from tests.model.zoo import sequences as s
from tests.model.zoo.healthy import glorot_, he_, lecun_, linear, stack
from tests.model.zoo.patients import Patient

#: What a doctor may call a signal or gradient that is too large, and one that is too small.
EXPLODING = ("exploding-signal", "exploding-gradient")
VANISHING = ("vanishing-gradient", "vanishing-signal", "collapsed-signal")
#: One code for a loss that is given probabilities for logits and for the reverse, or one for each.
REVERSED = ("loss-expects-logits", "loss-expects-probabilities", "loss-expects-log-probabilities")

# ---- modules -------------------------------------------------------------------------------------


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Skips(nn.Module):
    """Residual blocks on rows, without a norm, in the given initialization."""

    def __init__(self, blocks: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.read = linear(20, 32, he_)
        self.blocks = nn.ModuleList(
            nn.Sequential(linear(32, 32, he_), activation(), linear(32, 32, he_))
            for _ in range(blocks)
        )
        self.head = linear(32, 10, glorot_)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class SelfNormalizingSkips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = linear(20, 32, lecun_)
        self.layers = nn.ModuleList(linear(32, 32, lecun_) for _ in range(6))
        self.head = linear(32, 10, lecun_)

    def forward(self, x: Tensor) -> Tensor:
        x = F.selu(self.read(x))
        for layer in self.layers:
            x = x + F.selu(layer(x))
        return self.head(x)


class RecurrentBatchNorm(nn.Module):
    """Batch norm on the state, step after step: one set of statistics for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(24, 24)
        self.norm = nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        state, memory = x.new_zeros(2, len(x), 24)
        for step in x.unbind(1):
            state, memory = self.cell(step, (state, memory))
            state = self.norm(state)
        return self.head(state)


class Distances(nn.Module):
    """The distance to the first row, which is zero for that row: there a root has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = stack([20, 32, 16], nn.ReLU, he_)
        self.root = Call(torch.sqrt)
        self.head = nn.Linear(1, 10)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.encoder(x)
        return self.head(self.root(((codes - codes[:1]) ** 2).sum(1, keepdim=True)))


class Standardising(nn.Module):
    """Divides each row by its spread, which a constant row does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = stack([20, 32, 10], nn.ReLU, he_)

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))


# ---- surgery -------------------------------------------------------------------------------------


def normal_(weight: Tensor, spread: float = 1.0) -> Tensor:
    return nn.init.normal_(weight, std=spread)


def orthogonal_(gain: float) -> Callable[[Tensor], Tensor]:
    return partial(nn.init.orthogonal_, gain=gain)


def mlp(
    *more: Callable[[int], nn.Module], depth: int = 4, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    return stack([20, *[48] * depth, 10], activation, he_, *more)


def rows(model: Callable[[], nn.Module]) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.classes(p.table()))


def changed(
    change: Callable[[nn.Sequential], object],
    model: Callable[[], nn.Sequential] = mlp,
) -> Callable[[], Patient]:
    def build() -> Patient:
        made = model()
        with torch.no_grad():
            change(made)
        return Patient(made, p.classes(p.table()))

    return build


def duplicate_filters(model: nn.Sequential) -> None:
    weight = model[3].weight
    weight.copy_(weight[:1].expand_as(weight))


def conv_net(depth: int, initialize: Callable[[Tensor], object]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        convolution = nn.Conv2d(3 if i == 0 else 12, 12, 3, padding=1)
        initialize(convolution.weight)
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.ReLU()]
        if i in (1, 2):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def conv_duplicates() -> Patient:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    with torch.no_grad():
        duplicate_filters(model)
    return Patient(model, p.classes(p.images(size=16)))


def scaled_inputs(change: Callable[[Tensor], Tensor]) -> Callable[[], Patient]:
    return lambda: Patient(mlp(), p.classes(change(p.table())))


def pixels() -> Patient:
    model = conv_net(3, nn.init.kaiming_normal_)
    pictures = p.images(size=16)
    low, high = pictures.min(), pictures.max()
    return Patient(model, p.classes(255 * (pictures - low) / (high - low)))


def one_column() -> Patient:
    rows = p.table()
    rows[:, 3] = 1990 + 30 * torch.rand(len(rows))
    return Patient(mlp(), p.classes(rows))


def alpha(_: int) -> nn.Module:
    return nn.AlphaDropout(0.05)


def drop(_: int) -> nn.Module:
    return nn.Dropout(0.3)


def selu(
    *more: Callable[[int], nn.Module], initialize: Callable[[Tensor], object] = lecun_
) -> nn.Sequential:
    return stack([20, *[48] * 8, 10], nn.SELU, initialize, *more)


def selu_unstandardised() -> Patient:
    return Patient(selu(), p.classes(5 + 20 * p.table()))


def mixed() -> nn.Sequential:
    made = mlp(depth=5)
    for at, activation in ((1, nn.Tanh()), (5, nn.GELU()), (7, nn.Softplus())):
        made[at] = activation
    return made


def one_row() -> Patient:
    return Patient(mlp(nn.BatchNorm1d), p.classes(p.table()[:1]))


def one_image() -> Patient:
    layers = (nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
    return Patient(nn.Sequential(*layers), p.classes(p.images(1, 8)))


def optimized(
    model: Callable[[], nn.Module],
    optimizer: Callable[..., torch.optim.Optimizer],
    **settings: object,
) -> Callable[[], Patient]:
    def build() -> Patient:
        made = model()
        return Patient(
            made, p.classes(p.table()), optimizer=optimizer(made.parameters(), **settings)
        )

    return build


def ended(
    end: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], *, labels: bool = False
) -> Callable[[], Patient]:
    def build() -> Patient:
        model = nn.Sequential(*stack([20, 32, 32, 10], nn.ReLU, he_), end)
        inputs = p.table()
        if labels:
            return Patient(model, (inputs, torch.randint(2, (64, 10)).float()), loss)
        return Patient(model, p.classes(inputs), loss)

    return build


def underflow() -> Patient:
    model = stack([20, *[32] * 4, 10], nn.ReLU, he_).half()
    return Patient(model, p.classes(p.table().half()), lambda o, t: 1e-5 * F.cross_entropy(o, t))


def constant_row() -> Patient:
    rows = p.table()
    rows[7] = 1.0
    return Patient(Standardising(), p.classes(rows))


def overflow() -> Patient:
    model = mlp().half()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(20.0)
    return Patient(model, p.classes(p.table().half()))


def tokens(model: Callable[[], nn.Module]) -> Callable[[], Patient]:
    return lambda: Patient(model(), p.classes(p.tokens(), 5))


def recurrent_scaled() -> nn.Module:
    model = s.RecurrentClassifier(nn.LSTM)
    with torch.no_grad():
        for parameter in model.recurrent.parameters():
            parameter.mul_(100.0)
    return model


def dead_by_inputs() -> Patient:
    model = mlp(depth=3)
    with torch.no_grad():
        model[0].weight.abs_().neg_()
    return Patient(model, p.classes(30 + p.table()))


def wide_bias(model: nn.Sequential) -> None:
    nn.init.normal_(model[2].bias, std=200.0)
