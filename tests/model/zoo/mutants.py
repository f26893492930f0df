"""Random mutants: a healthy model, one fault planted in it; kind, place and strength by seed.

Seeds 0 to 199 are for development: rules may be mended on what they show. Published numbers come
from seeds of :data:`HELD_OUT` and on, which nobody looks at while mending.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.model.zoo import patients as p
from tests.model.zoo import sequences as s
from tests.model.zoo.faults import EXPLODING, REVERSED, VANISHING
from tests.model.zoo.healthy import ResidualRows, glorot_, he_, lecun_, stack
from tests.model.zoo.patients import Case, Patient

#: The first seed of the test set.
HELD_OUT = 10_000


@dataclass(frozen=True)
class Mutant(Case):
    """A case whose build gives always the same patient, once.

    Args:
        kind: which fault was planted.
        base: in which model.
        strength: how strong, in words.
    """

    kind: str = ""
    base: str = ""
    strength: str = ""


@dataclass
class _Subject:
    """A healthy model, and what may be done to it.

    ``places`` are its plain layers, each with the activation after it: no norm follows them, so
    that their scale counts. The last is the head, whose own place is all there is to name.
    """

    name: str
    patient: Patient
    places: list[tuple[str, ...]]
    activation: str = ""

    @property
    def model(self) -> nn.Module:
        return self.patient.model

    def weight(self, place: tuple[str, ...]) -> Tensor:
        return self.model.get_submodule(place[0]).weight


_Planted = tuple[tuple[str, ...], tuple[str, ...], str]  # codes, modules, strength


# ---- healthy subjects ----------------------------------------------------------------------------

_ROWS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Any]]] = {
    "relu": (nn.ReLU, he_),
    "leaky_relu": (partial(nn.LeakyReLU, 0.1), he_),
    "gelu": (nn.GELU, he_),
    "silu": (nn.SiLU, he_),
    "tanh": (nn.Tanh, glorot_),
    "selu": (nn.SELU, lecun_),
}


def _places(model: nn.Sequential) -> list[tuple[str, ...]]:
    layers = [i for i, m in enumerate(model) if isinstance(m, nn.Linear | nn.Conv2d)]
    hidden = [(str(i), str(i + 1)) for i in layers[:-1]]
    return [*hidden, (str(layers[-1]),)]


def _plain_rows(draw: random.Random, activation: str) -> _Subject:
    make, initialize = _ROWS[activation]
    hidden = [draw.choice((24, 32, 48, 64, 96))] * draw.randint(2, 6)
    model = stack([20, *hidden, 10], make, initialize)
    return _Subject(
        f"{activation}_rows", Patient(model, p.classes(p.table())), _places(model), activation
    )


def _plain_images(draw: random.Random) -> _Subject:
    layers: list[nn.Module] = []
    channels = 3
    for i in range(draw.randint(2, 5)):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
        layers += [nn.MaxPool2d(2)] if i % 2 else []
        channels = 16
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*layers)
    return _Subject("relu_images", Patient(model, p.classes(p.images())), _places(model), "relu")


def _normed_rows(draw: random.Random, depth: int | None = None) -> _Subject:
    hidden = [draw.choice((32, 48, 64))] * (depth or draw.randint(3, 8))
    model = stack([20, *hidden, 10], nn.ReLU, None, nn.BatchNorm1d)
    head = [(str(len(model) - 1),)]
    return _Subject("normed_rows", Patient(model, p.classes(p.table())), head)


def _residual(draw: random.Random) -> _Subject:
    model = ResidualRows(draw.randint(3, 10))
    return _Subject("residual_rows", Patient(model, p.classes(p.table())), [("head",)])


def _encoder(draw: random.Random) -> _Subject:
    model = s.EncoderClassifier(layers=draw.randint(1, 4), norm_first=draw.random() < 0.5)
    return _Subject("encoder", Patient(model, p.classes(p.series(), 3)), [("head",)])


def _recurrent(draw: random.Random) -> _Subject:
    kind = draw.choice((nn.LSTM, nn.GRU))
    model = s.RecurrentClassifier(kind)
    name = kind.__name__.lower()
    return _Subject(name, Patient(model, p.classes(p.tokens(), 5)), [("fc",)])


def _published(draw: random.Random) -> _Subject:
    name = draw.choice(("test_resnet", "test_vit", "test_convnext", "test_efficientnet"))
    more = {"img_size": 64} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=10, **more)
    return _Subject(name, Patient(model, p.classes(p.images(size=64))), [])


def _any(draw: random.Random) -> _Subject:
    makers = (_rows, _plain_images, _normed_rows, _residual, _encoder, _recurrent, _published)
    return draw.choice(makers)(draw)


def _layered(draw: random.Random) -> _Subject:
    makers = (_rows, _plain_images, _normed_rows, _residual, _published)
    return draw.choice(makers)(draw)


def _rows(draw: random.Random) -> _Subject:
    return _plain_rows(draw, draw.choice(list(_ROWS)))


def _unbounded(draw: random.Random) -> _Subject:
    if draw.random() < 0.3:
        return _plain_images(draw)
    return _plain_rows(draw, draw.choice([name for name in _ROWS if name != "tanh"]))


def _rectified(draw: random.Random) -> _Subject:
    return _plain_images(draw) if draw.random() < 0.4 else _plain_rows(draw, "relu")


# ---- faults --------------------------------------------------------------------------------------


def _factor(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


def _broken_selu(subject: _Subject) -> tuple[str, ...]:
    return ("self-normalization-broken",) if subject.activation == "selu" else ()


def _scaled_up(subject: _Subject, draw: random.Random) -> _Planted:
    place, factor = draw.choice(subject.places), _factor(draw, 10, 1000)
    subject.weight(place).mul_(factor)
    return EXPLODING + _broken_selu(subject), (), f"{place[0]} x {factor:.0f}"


def _scaled_down(subject: _Subject, draw: random.Random) -> _Planted:
    place, factor = draw.choice(subject.places[:-1]), _factor(draw, 10, 1000)
    subject.weight(place).div_(factor)
    return VANISHING + _broken_selu(subject), (), f"{place[0]} / {factor:.0f}"


def _zeroed(subject: _Subject, draw: random.Random) -> _Planted:
    place = draw.choice(subject.places[:-1])
    subject.weight(place).zero_()
    return ("symmetric-weights", "collapsed-signal", "dead-units"), place, place[0]


def _hidden_weights(subject: _Subject) -> list[str]:
    """Every linear or convolutional layer but the last, whose units read the same inputs."""
    layers = [
        name
        for name, module in subject.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1
    ]
    return layers[:-1]


def _constant(subject: _Subject, draw: random.Random) -> _Planted:
    name, value = (
        draw.choice(_hidden_weights(subject)),
        draw.choice((-1, 1)) * draw.uniform(0.01, 0.3),
    )
    layer = subject.model.get_submodule(name)
    layer.weight.fill_(value)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return ("symmetric-weights",), (name,), f"{name} = {value:.2f}"


def _duplicated(subject: _Subject, draw: random.Random) -> _Planted:
    name = draw.choice(_hidden_weights(subject))
    layer = subject.model.get_submodule(name)
    layer.weight.copy_(layer.weight[:1].clone().expand_as(layer.weight))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return ("symmetric-weights",), (name,), name


def _dead(subject: _Subject, draw: random.Random) -> _Planted:
    place = draw.choice(subject.places[:-1])
    bias = subject.model.get_submodule(place[0]).bias
    share, depth = draw.uniform(0.5, 1.0), draw.uniform(20, 100)
    bias[: math.ceil(share * len(bias))] = -depth
    return ("dead-units",), place, f"{place[0]}: {share:.0%} at {-depth:.0f}"


def _not_finite(subject: _Subject, draw: random.Random) -> _Planted:
    value = draw.choice((math.nan, math.inf, -math.inf))
    name, parameter = draw.choice(list(subject.model.named_parameters()))
    place = name.rpartition(".")[0]
    if isinstance(subject.model.get_submodule(place), nn.Embedding):
        parameter[subject.patient.batch[0][0, 0], 0] = value  # a token that is there
    else:
        parameter.view(-1)[draw.randrange(parameter.numel())] = value
    # What the model itself owns (a class token) first shows in whichever module reads it.
    return ("non-finite",), (place,) if place else (), f"{name}: {value}"


def _normal_everywhere(subject: _Subject, draw: random.Random) -> _Planted:
    for parameter in subject.model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter)
    codes = EXPLODING + _broken_selu(subject)
    return (*codes, "saturated-units") if subject.activation in ("tanh", "") else codes, (), ""


def _saturated(subject: _Subject, draw: random.Random) -> _Planted:
    place, factor = draw.choice(subject.places[:-1]), _factor(draw, 30, 300)
    subject.weight(place).mul_(factor)
    return ("saturated-units",), place, f"{place[0]} x {factor:.0f}"


def _unstandardised(subject: _Subject, draw: random.Random) -> _Planted:
    inputs, target = subject.patient.batch
    strength = _factor(draw, 20, 300)
    how = draw.choice(("scaled", "shrunk", "shifted"))
    change = {
        "scaled": inputs * strength,
        "shrunk": inputs / strength,
        "shifted": inputs + strength,
    }
    subject.patient.batch = change[how], target
    return ("input-not-standardised",), (), f"{how} by {strength:.0f}"


def _equal_rows(subject: _Subject, draw: random.Random) -> _Planted:
    inputs, target = subject.patient.batch
    subject.patient.batch = inputs[:1].expand_as(inputs).clone(), target
    return ("collapsed-signal", "input-not-standardised", "constant-input"), (), ""


def _without_norm(subject: _Subject, draw: random.Random) -> _Planted:
    for i, module in enumerate(subject.model):
        if isinstance(module, nn.BatchNorm1d):
            subject.model[i] = nn.Identity()
    return (*VANISHING, "plain-depth"), (), ""


def _sigmoid_instead(subject: _Subject, draw: random.Random) -> _Planted:
    for i, module in enumerate(subject.model):
        if isinstance(module, nn.BatchNorm1d):
            subject.model[i] = nn.Identity()
        elif isinstance(module, nn.ReLU):
            subject.model[i] = nn.Sigmoid()
    return (*VANISHING, "saturating-depth", "plain-depth"), (), ""


def _dropout_before_norm(subject: _Subject, draw: random.Random) -> _Planted:
    norms = [i for i, m in enumerate(subject.model) if isinstance(m, nn.BatchNorm1d)]
    at, rate = draw.choice(norms), draw.uniform(0.1, 0.5)
    subject.model.insert(at, nn.Dropout(rate))
    return ("dropout-before-norm",), (), f"{rate:.2f} before {at}"


def _extreme_momentum(subject: _Subject, draw: random.Random) -> _Planted:
    momentum = draw.choice((0.9999, 0.99995, 0.99999, 0.999999))
    subject.patient.optimizer = torch.optim.SGD(subject.model.parameters(), 0.1, momentum=momentum)
    return ("extreme-momentum",), (), f"{momentum}"


def _softmax_twice(subject: _Subject, draw: random.Random) -> _Planted:
    subject.model.append(nn.Softmax(-1))
    subject.patient.loss = F.cross_entropy
    return ("loss-expects-logits",), (), ""


def _logits_as_likelihood(subject: _Subject, draw: random.Random) -> _Planted:
    subject.patient.loss = F.nll_loss
    return REVERSED, (), ""


def _self_normalization(subject: _Subject, draw: random.Random) -> _Planted:
    how = draw.choice(("he", "torch", "batch norm", "dropout"))
    layers = [m for m in subject.model if isinstance(m, nn.Linear)]
    activations = [i for i, m in enumerate(subject.model) if isinstance(m, nn.SELU)]
    if how == "he":
        for layer in layers:
            he_(layer.weight)
    elif how == "torch":
        for layer in layers:
            layer.reset_parameters()
    else:
        width = layers[0].out_features
        at = draw.choice(activations) + 1
        subject.model.insert(at, nn.BatchNorm1d(width) if how == "batch norm" else nn.Dropout(0.3))
    return ("self-normalization-broken",), (), how


def _one_row(subject: _Subject, draw: random.Random) -> _Planted:
    inputs, target = subject.patient.batch
    subject.patient.batch = inputs[:1], target[:1]
    return ("batch-norm-one-row",), (), ""


def _decayed_prelu(subject: _Subject, draw: random.Random) -> _Planted:
    for i, module in enumerate(subject.model):
        if isinstance(module, nn.ReLU):
            subject.model[i] = nn.PReLU()
    decay = _factor(draw, 1e-3, 0.3)
    optimizer = draw.choice((torch.optim.AdamW, torch.optim.SGD))
    subject.patient.optimizer = optimizer(subject.model.parameters(), lr=1e-2, weight_decay=decay)
    return ("decayed-prelu",), (), f"{decay:.3f}"


_Plant = Callable[[_Subject, random.Random], _Planted]

#: Each kind of fault with the subjects it makes sick.
KINDS: dict[str, tuple[_Plant, Callable[[random.Random], _Subject]]] = {
    "scaled_up": (_scaled_up, _unbounded),
    "scaled_down": (_scaled_down, lambda d: _plain_images(d) if d.random() < 0.3 else _rows(d)),
    "zeroed": (_zeroed, _unbounded),
    "constant": (_constant, _layered),
    "duplicated": (_duplicated, _layered),
    "dead": (_dead, _rectified),
    "not_finite": (_not_finite, _any),
    "normal_everywhere": (_normal_everywhere, _rows),
    "saturated": (_saturated, lambda d: _plain_rows(d, "tanh")),
    "unstandardised": (_unstandardised, _layered),
    "equal_rows": (_equal_rows, lambda d: _plain_images(d) if d.random() < 0.3 else _rows(d)),
    "without_norm": (_without_norm, lambda d: _normed_rows(d, d.randint(20, 40))),
    "sigmoid_instead": (_sigmoid_instead, lambda d: _normed_rows(d, d.randint(8, 20))),
    "dropout_before_norm": (_dropout_before_norm, _normed_rows),
    "extreme_momentum": (_extreme_momentum, _any),
    "softmax_twice": (_softmax_twice, _unbounded),
    "logits_as_likelihood": (_logits_as_likelihood, _any),
    "self_normalization": (_self_normalization, lambda d: _plain_rows(d, "selu")),
    "one_row": (_one_row, _normed_rows),
    "decayed_prelu": (_decayed_prelu, lambda d: _plain_rows(d, "relu")),
}


def mutant(seed: int) -> Mutant:
    """The mutant of a seed, the same on every call; generators are left as they were."""
    draw = random.Random(seed)
    # Every kind comes round, in an order of its own; what is drawn is all the rest.
    kind = list(KINDS)[seed % len(KINDS)]
    plant, make = KINDS[kind]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        subject = make(draw)
        codes, modules, strength = plant(subject, draw)
    name = f"{seed}-{kind}-{subject.name}"
    return Mutant(
        name,
        lambda: subject.patient,
        codes,
        modules,
        kind=kind,
        base=subject.name,
        strength=strength,
    )
