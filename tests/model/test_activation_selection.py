"""The measured choice: who is out before the race, who wins it, and when nothing changes."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from stablelightning.model.activation import swap_activations
from stablelightning.model.activation_names import activation_choice
from stablelightning.model.activation_ranking import (
    COLUMNS,
    ActivationRanking,
    CandidateResult,
    CandidateSignal,
)
from stablelightning.model.activation_selection import (
    CANDIDATES,
    RaceData,
    RaceSettings,
    select_activation,
    signal_of,
)
from stablelightning.model.race import PlainContestant


def batches(count=4, rows=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, rows, 6, generator=generator)
    return [(part, (part.sum(1) > 0).long()) for part in x]


DATA = RaceData(batches()[:3], batches()[3:])


def deep(depth, width=24, act=nn.Tanh):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), act())]
    return nn.Sequential(nn.Linear(6, width), act(), *layers, nn.Linear(width, 2))


def builder(model, rate=0.01):
    made = []

    def build(name):
        made.append(name)
        net = copy.deepcopy(model)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        swap_activations(net, name)
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        return PlainContestant(net, nn.CrossEntropyLoss(), optimizer)

    return build, made


def test_every_default_candidate_exists_and_several_slopes_are_among_them():
    assert [activation_choice(name).name for name in CANDIDATES if "0.01" not in name] == [
        name for name in CANDIDATES if "0.01" not in name
    ]
    assert sum(name.startswith("leaky_relu") for name in CANDIDATES) >= 3


def test_a_better_activation_wins_with_its_evidence():
    build, made = builder(deep(2, act=nn.Sigmoid))
    settings = RaceSettings(steps=30, seeds=2, finalists=2)
    ranking = select_activation(build, ["sigmoid", "relu", "elu", "tanh"], DATA, settings)
    assert ranking.chosen in ("relu", "elu", "tanh")
    assert ranking.results[0].name == ranking.chosen
    chosen, before = ranking[ranking.chosen], ranking["sigmoid"]
    assert chosen.loss < before.loss == ranking.target
    assert chosen.steps_to_target < before.steps_to_target
    assert chosen.milliseconds > 0
    assert [step for step, _ in chosen.curve][-1] == 30
    assert made.count("sigmoid") == 3  # watched once, raced twice: the incumbent always races
    assert sum(bool(r.losses) for r in ranking.results) == 3
    assert sum("not raced" in r.verdict for r in ranking.results) == 1


def test_the_same_call_makes_the_same_choice_and_moves_no_generator():
    build, _ = builder(deep(1))
    state = torch.get_rng_state()
    settings = RaceSettings(steps=10, seeds=2)
    first, second = (
        select_activation(build, ["tanh", "relu", "prelu"], DATA, settings) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [r.losses for r in first.results] == [r.losses for r in second.results]
    other = select_activation(build, ["tanh", "relu", "prelu"], DATA, RaceSettings(10, 2, seed=9))
    assert other["tanh"].losses != first["tanh"].losses


def test_equal_candidates_change_nothing():
    build, _ = builder(deep(1))
    ranking = select_activation(
        lambda _: build("tanh"), ["tanh", "again"], DATA, RaceSettings(8, seeds=3)
    )
    assert ranking["tanh"].losses == ranking["again"].losses
    assert ranking.chosen == "tanh"
    assert "kept" in str(ranking)


def test_noise_is_no_reason_to_change():
    losses = {"a": [1.0, 1.2, 0.8], "b": [0.99, 1.3, 0.69]}

    class Fixed(PlainContestant):
        def __init__(self, net, value):
            super().__init__(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.0))
            self.value = value

        def loss(self, batch):
            return self.value

    calls = {"a": -1, "b": -1}  # the first build is for the signal

    def build(name):
        calls[name] += 1
        return Fixed(deep(1), losses[name][max(calls[name] - 1, 0)])

    ranking = select_activation(build, ["a", "b"], DATA, RaceSettings(2, seeds=3))
    assert ranking.results[0].name == "b"
    assert ranking.chosen == "a"
    assert "within the noise" in ranking["b"].verdict


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (deep(40, act=nn.Sigmoid), "changes by a factor of"),
        (nn.Sequential(*deep(2, act=nn.ReLU)[:1], nn.ReLU(), nn.Linear(24, 2)), ""),
    ],
    ids=["forty-sigmoids", "shallow"],
)
def test_the_signal_throws_out_what_cannot_train(model, said):
    signal = signal_of(copy.deepcopy(model), DATA.batches[0])
    assert said in signal.fault
    assert bool(said) is bool(signal.fault)


def test_dead_and_saturated_units_are_seen():
    dead = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))
    nn.init.constant_(dead[0].bias, -100.0)
    assert "100% of its units are dead" in signal_of(dead, DATA.batches[0]).fault
    flat = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
    nn.init.normal_(flat[0].weight, std=4.0)
    assert "of its values are saturated" in signal_of(flat, DATA.batches[0]).fault


def test_centred_activations_are_told_from_others():
    centred, other = (signal_of(deep(1, act=act), DATA.batches[0]) for act in (nn.Tanh, nn.Sigmoid))
    assert centred.off_centre < 0.4 < 0.7 < other.off_centre


def test_a_candidate_that_cannot_be_built_is_told():
    build, _ = builder(deep(1))

    def sometimes(name):
        if name == "elu":
            raise RuntimeError("no such thing\nreally")
        return build(name)

    ranking = select_activation(sometimes, ["tanh", "elu", "relu"], DATA, RaceSettings(4, 1))
    assert "cannot be built: no such thing" in ranking["elu"].verdict
    assert ranking.results[-1].name == "elu"


def test_a_diverging_incumbent_is_replaced_and_a_diverging_rival_is_not_chosen():
    tame, _ = builder(deep(1), rate=1e-3)
    wild, _ = builder(deep(1), rate=1e30)
    for incumbent, expected in (("wild", "tame"), ("tame", "tame")):
        order = [incumbent, "tame" if incumbent == "wild" else "wild"]
        ranking = select_activation(
            lambda name: (tame if name == "tame" else wild)("tanh"),
            order,
            DATA,
            RaceSettings(6, seeds=2),
        )
        assert ranking.chosen == expected


def test_all_go_by_what_one_process_says():
    build, _ = builder(deep(1))
    said = []

    def agree(found):
        said.append(found)
        return ["relu"] if isinstance(found, list) else found

    settings = RaceSettings(4, seeds=1, finalists=1)
    ranking = select_activation(build, ["tanh", "elu", "relu"], DATA, settings, agree=agree)
    assert ranking["relu"].losses
    assert not ranking["elu"].losses
    assert isinstance(said[-1], ActivationRanking)


def test_the_table_has_plain_numbers_only():
    results = [
        CandidateResult("relu", CandidateSignal(), losses=[1.0, 2.0], milliseconds=3.0),
        CandidateResult("tanh", CandidateSignal(fault="flat"), verdict="not raced: flat"),
        CandidateResult("elu", CandidateSignal(), losses=[math.inf], curve=[(1, math.inf)]),
    ]
    ranking = ActivationRanking("relu", "relu", results, 1.5, 10, 2)
    text = json.dumps(ranking.to_dict(), allow_nan=False)
    assert json.loads(text)["rows"][0][: len(COLUMNS)][0] == "relu"
    assert all(len(row) == len(COLUMNS) for row in ranking.rows_for_table())
    lines = str(ranking).splitlines()
    assert len(lines) == 5
    assert "not raced: flat" in lines[2]
    with pytest.raises(KeyError):
        ranking["gelu"]
