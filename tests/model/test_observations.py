"""Statistics that wait for others are those of each tensor alone."""

from dataclasses import asdict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.functional.signals import duplicate_shares, duplicate_units
from stablelightning.model.observations import Observations
from stablelightning.model.observe import function_shape, observe, observe_activation
from stablelightning.model.weight_statistics import statistics_of, weight_statistics

SHAPES = [(32, 8), (32, 8), (4, 16), (32, 8), (4, 16), (300, 200)]


def test_signals_that_waited_are_those_of_each_tensor():
    tensors = [torch.randn(shape) + i for i, shape in enumerate(SHAPES)]
    expected = [observe(t, dimension=1, examples=len(t)) for t in tensors]
    for examples in (32, 4):
        observations, seen = Observations(examples), {}
        for i, values in enumerate(tensors):
            if len(values) == examples:
                written = values.clone()
                units = observations.of_tensor(
                    written, dimension=1, then=partial(seen.__setitem__, i)
                )
                assert units == values.shape[1]
                written.zero_()  # as a ReLU in place may do before anybody looks
        observations.finish()
        for i, signal in seen.items():
            assert asdict(signal) == pytest.approx(asdict(expected[i]), rel=1e-4)
        assert len(seen) == sum(shape[0] == examples for shape in SHAPES)


def test_activations_of_one_function_are_seen_together():
    tensors = [torch.randn(16, 5) * (i + 1) - 2 for i in range(3)]
    shape = function_shape(F.elu)
    observations, seen = Observations(16), {}
    for i, values in enumerate(tensors):
        observations.of_activation(
            F.elu,
            values,
            named="elu",
            dimension=1,
            shape=shape,
            then=partial(seen.__setitem__, i),
        )
    observations.finish()
    for i, values in enumerate(tensors):
        alone = asdict(observe_activation("elu", F.elu, values, 1, shape=shape))
        name = alone.pop("name")
        told = asdict(seen[i])
        assert told.pop("name") == name
        assert told == pytest.approx(alone, rel=1e-4)


def test_weights_of_one_shape_are_seen_together():
    layers = [nn.Linear(6, 4) for _ in range(3)] + [nn.Conv2d(2, 4, 3), nn.LSTM(3, 4)]
    with torch.no_grad():
        layers[1].weight[2] = layers[1].weight[0]
    together = statistics_of(layers)
    for layer in layers:
        alone = weight_statistics(layer, "linear")
        assert asdict(together[layer]) == pytest.approx(asdict(alone), rel=1e-5)
    assert together[layers[1]].duplicates == 0.25
    assert together[layers[0]].duplicates == 0


def test_copies_are_counted_in_each_of_several_matrices():
    matrices = torch.randn(4, 6, 5)
    matrices[1, 3] = matrices[1, 0]
    matrices[3] = 1.0
    expected = [duplicate_units(m).float().mean().item() for m in matrices]
    assert duplicate_shares(matrices).tolist() == pytest.approx(expected)
