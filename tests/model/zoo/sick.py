"""Sick models, one fault each, with what a good doctor says first and where."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tests.model.zoo import faults as f
from tests.model.zoo import patients as p
from tests.model.zoo.faults import EXPLODING, VANISHING
from tests.model.zoo.healthy import glorot_, he_, stack
from tests.model.zoo.patients import Case, Patient

SICK = [
    # ---- symmetric
    Case(
        "constant_layer",
        f.changed(lambda m: m[2].weight.fill_(0.02)),
        ("symmetric-weights",),
        ("2",),
    ),
    Case(
        "constant_everywhere",
        f.rows(lambda: stack([20, 32, 32, 10], nn.Tanh, partial(nn.init.constant_, val=0.1))),
        ("symmetric-weights",),
    ),
    Case(
        "zero_everywhere",
        f.rows(lambda: stack([20, 32, 32, 10], nn.ReLU, nn.init.zeros_)),
        ("symmetric-weights",),
    ),
    Case("zero_layer", f.changed(lambda m: m[4].weight.zero_()), ("symmetric-weights",), ("4",)),
    Case("equal_filters", f.conv_duplicates, ("symmetric-weights",), ("3",)),
    # ---- too large
    Case(
        "standard_normal",
        f.rows(lambda: stack([20, *[64] * 12, 10], nn.ReLU, f.normal_)),
        EXPLODING,
    ),
    Case("residual_without_norm", f.rows(lambda: f.Skips(40)), EXPLODING),
    Case("large_layer", f.changed(lambda m: m[4].weight.mul_(1000)), EXPLODING, ("4", "5")),
    Case("large_head", f.changed(lambda m: m[8].weight.mul_(300)), EXPLODING, ("8",)),
    Case(
        "chaotic_tanh",
        f.rows(lambda: stack([20, *[64] * 20, 10], nn.Tanh, f.orthogonal_(4.0))),
        ("exploding-gradient", "saturated-units"),
    ),
    Case(
        "large_loss",
        lambda: Patient(f.mlp(), p.classes(p.table()), lambda o, t: 1e6 * F.cross_entropy(o, t)),
        ("exploding-gradient",),
    ),
    # ---- too small
    Case(
        "deep_torch_default",
        f.rows(lambda: stack([20, *[64] * 30, 10], nn.ReLU)),
        (*VANISHING, "plain-depth"),
    ),
    Case(
        "deep_sigmoid",
        f.rows(lambda: stack([20, *[48] * 12, 10], nn.Sigmoid, glorot_)),
        (*VANISHING, "saturating-depth"),
    ),
    Case(
        "tiny_convolutions",
        lambda: Patient(
            f.conv_net(10, partial(f.normal_, spread=0.01)), p.classes(p.images(size=16))
        ),
        VANISHING,
    ),
    Case("tiny_layer", f.changed(lambda m: m[4].weight.mul_(1e-4)), VANISHING),
    Case(
        "tiny_loss",
        lambda: Patient(f.mlp(), p.classes(p.table()), lambda o, t: 1e-9 * F.cross_entropy(o, t)),
        ("vanishing-gradient", "gradient-underflow"),
    ),
    Case("half_precision_underflow", f.underflow, ("gradient-underflow", "vanishing-gradient")),
    # ---- collapsed
    Case(
        "deep_he",
        f.rows(lambda: stack([20, *[48] * 40, 10], nn.ReLU, he_)),
        ("collapsed-signal", "plain-depth"),
    ),
    Case(
        "wide_bias",
        f.changed(f.wide_bias),
        ("collapsed-signal", "dead-units", *EXPLODING),
        ("2", "3"),
    ),
    Case(
        "equal_rows",
        lambda: Patient(f.mlp(), p.classes(p.table()[:1].expand(64, -1))),
        ("collapsed-signal", "input-not-standardised", "constant-input"),
    ),
    # ---- dead and saturated
    Case("dead_biases", f.changed(lambda m: m[2].bias.fill_(-30.0)), ("dead-units",), ("2", "3")),
    Case(
        "half_dead", f.changed(lambda m: m[4].bias[:30].fill_(-30.0)), ("dead-units",), ("4", "5")
    ),
    Case("dead_by_inputs", f.dead_by_inputs, ("dead-units",), ("0", "1")),
    Case(
        "saturated_tanh",
        f.changed(
            lambda m: m[2].weight.mul_(60), lambda: stack([20, 48, 48, 10], nn.Tanh, glorot_)
        ),
        ("saturated-units",),
        ("2", "3"),
    ),
    Case(
        "saturated_sigmoid_by_bias",
        f.changed(lambda m: m[0].bias.fill_(15), lambda: stack([20, 48, 10], nn.Sigmoid, glorot_)),
        ("saturated-units", "dead-units"),  # flat on every row: both are true
        ("0", "1"),
    ),
    Case(
        "saturated_lstm",
        f.tokens(f.recurrent_scaled),
        ("saturated-units", *EXPLODING),
        ("recurrent",),
    ),
    Case(
        "hidden_sigmoids",
        f.rows(lambda: stack([20, *[48] * 3, 10], nn.Sigmoid, glorot_)),
        ("not-zero-centred",),
    ),
    # ---- not finite
    Case(
        "nan_weight",
        f.changed(lambda m: m[4].weight[3, 5].fill_(math.nan)),
        ("non-finite",),
        ("4",),
    ),
    Case(
        "infinite_bias", f.changed(lambda m: m[2].bias[0].fill_(math.inf)), ("non-finite",), ("2",)
    ),
    Case(
        "logarithm",
        f.rows(
            lambda: nn.Sequential(
                *stack([20, 32, 32], nn.ReLU, he_), f.Call(torch.log), nn.Linear(32, 10)
            )
        ),
        ("non-finite",),
        ("3",),
    ),
    Case("distance_of_zero", f.rows(f.Distances), ("non-finite",), ("root", "encoder")),
    Case("constant_row", f.constant_row, ("non-finite",)),
    Case("half_precision_overflow", f.overflow, ("non-finite",)),
    # ---- the batch
    Case("batch_norm_one_row", f.one_row, ("batch-norm-one-row",)),
    Case("batch_norm_one_pixel", f.one_image, ("batch-norm-one-row",), ("1",)),
    Case("pixels", f.pixels, ("input-not-standardised",)),
    Case("far_from_zero", f.scaled_inputs(lambda x: x + 100), ("input-not-standardised",)),
    Case("tiny_inputs", f.scaled_inputs(lambda x: 1e-4 * x), ("input-not-standardised",)),
    Case("one_wild_column", f.one_column, ("input-not-standardised",)),
    # ---- the architecture
    Case(
        "saturating_depth",
        f.rows(lambda: stack([20, *[48] * 6, 10], nn.Sigmoid, f.orthogonal_(4.0))),
        ("saturating-depth",),
    ),
    Case(
        "plain_depth",
        f.rows(lambda: stack([20, *[48] * 30, 10], nn.ReLU, f.orthogonal_(math.sqrt(2)))),
        ("plain-depth", "collapsed-signal"),
    ),
    Case("selu_batch_norm", f.rows(lambda: f.selu(nn.BatchNorm1d)), ("self-normalization-broken",)),
    Case("selu_plain_dropout", f.rows(lambda: f.selu(f.drop)), ("self-normalization-broken",)),
    Case(
        "selu_he",
        f.rows(lambda: f.selu(initialize=he_)),
        ("self-normalization-broken", "exploding-signal"),
    ),
    Case("selu_skips", f.rows(f.SelfNormalizingSkips), ("self-normalization-broken",)),
    Case(
        "selu_unstandardised",
        f.selu_unstandardised,
        ("self-normalization-broken", "input-not-standardised"),
    ),
    Case("mixed_activations", f.rows(f.mixed), ("mixed-activations",)),
    Case(
        "dropout_before_norm",
        f.rows(lambda: f.mlp(f.drop, nn.BatchNorm1d)),
        ("dropout-before-norm",),
    ),
    Case(
        "lstm_without_clipping",
        lambda: Patient(
            nn.Sequential(
                nn.LSTM(8, 24, batch_first=True), f.Call(lambda o: o[0][:, -1]), nn.Linear(24, 10)
            ),
            p.classes(p.series(steps=60)),
        ),
        ("recurrent-without-clipping",),
    ),
    Case(
        "recurrent_batch_norm",
        lambda: Patient(f.RecurrentBatchNorm(), p.classes(p.series(columns=24))),
        ("recurrent-batch-norm",),
    ),
    # ---- the loss and the optimizer
    Case(
        "softmax_into_cross_entropy",
        f.ended(nn.Softmax(-1), F.cross_entropy),
        ("loss-expects-logits",),
    ),
    Case(
        "sigmoid_into_logits_loss",
        f.ended(nn.Sigmoid(), F.binary_cross_entropy_with_logits, labels=True),
        ("loss-expects-logits",),
    ),
    Case(
        "logits_into_nll",
        f.ended(nn.Identity(), F.nll_loss),
        f.REVERSED,
    ),
    Case(
        "extreme_momentum",
        f.optimized(f.mlp, torch.optim.SGD, lr=0.1, momentum=0.99999),
        ("extreme-momentum",),
    ),
    Case(
        "decayed_prelu",
        f.optimized(lambda: f.mlp(activation=nn.PReLU), torch.optim.AdamW, weight_decay=0.1),
        ("decayed-prelu",),
    ),
]
