"""The UCI benchmark on tiny drawn folders: its layout, its gradient, and what it may look at."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stablelightning.functional.scores import gaussian_negative_log_likelihood
from stablelightning.functional.uncertainty import gaussian_mixture_log_likelihood
from stablelightning.nn.heads import VARIANCE_FLOOR
from tests.benchmarks.uci import columns, show, tuning
from tests.benchmarks.uci.__main__ import COLUMNS, main
from tests.benchmarks.uci.columns import Effort
from tests.benchmarks.uci.data import Scaling, precisions_of, read
from tests.benchmarks.uci.network import UNITS, Candidate, Masks, Stack
from tests.benchmarks.uci.scoring import Score, run
from tests.benchmarks.uci.training import Course, Job, Track, trained

LITTLE = Effort(steps=20, published_steps=20, samples=20, published_samples=20)


def write(folder, *, rows=60, splits=2, noise=0.1, test_rows=12):
    """A set of three columns, the last of them constant, and one target."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 2))
    y = 100 + 20 * x[:, 0] + noise * draw.normal(size=rows)
    np.savetxt(folder / "data.txt", np.column_stack([x, np.full(rows, 7.1), y]))
    np.savetxt(folder / "index_features.txt", [0, 1, 2])
    np.savetxt(folder / "index_target.txt", [3])
    for number in range(splits):
        order = draw.permutation(rows)
        np.savetxt(folder / f"index_test_{number}.txt", order[:test_rows])
        np.savetxt(folder / f"index_train_{number}.txt", order[test_rows:])
    return folder


def in_turn(jobs):
    return [run(job) for job in jobs]


@pytest.fixture
def problem(tmp_path):
    write(tmp_path / "drawn")
    return read(tmp_path, "drawn", splits=2)


# ---- the folder -------------------------------------------------------------------------------


def test_a_run_writes_one_number_per_split_for_every_column(tmp_path, capsys):
    write(tmp_path / "drawn")
    numbers = tmp_path / "numbers.json"
    arguments = ["--root", str(tmp_path), "--dataset", "drawn", "--processes", "1"]
    assert main([*arguments, "--json", str(numbers)], LITTLE) == 0
    told = json.loads(numbers.read_text())
    assert told["dataset"] == "drawn"
    for column in (told, *(told[name] for name in COLUMNS[1:])):
        assert len(column["rmse"]) == len(column["log_likelihood"]) == 2
        assert np.isfinite(column["rmse"] + column["log_likelihood"]).all()
        assert column["seconds"] > 0
        assert sum(column["chosen"].values()) == 2
    assert "drawn has 2 splits" in capsys.readouterr().err


def test_the_headline_alone_can_be_asked_for(tmp_path):
    write(tmp_path / "drawn")
    numbers = tmp_path / "numbers.json"
    arguments = ["--root", str(tmp_path), "--dataset", "drawn", "--processes", "1", "--splits", "1"]
    main([*arguments, "--json", str(numbers), "--columns", columns.HEADLINE], LITTLE)
    told = json.loads(numbers.read_text())
    assert len(told["rmse"]) == 1
    assert not set(COLUMNS) & set(told)


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda f: (f / "data.txt").unlink(), "data.txt cannot be read: No such file"),
        (lambda f: (f / "index_test_0.txt").unlink(), "index_test_0.txt cannot be read"),
        (lambda f: [p.unlink() for p in f.glob("index_train*")], "has no index_train_0.txt"),
        (lambda f: (f / "data.txt").write_text("a b\n1 2\n"), "must hold numbers only"),
        (lambda f: (f / "data.txt").write_text("\n"), "data.txt is empty"),
        (lambda f: (f / "index_target.txt").write_text("4"), r"numbers in \[0, 4\), got 4"),
        (lambda f: (f / "index_target.txt").write_text("1 2"), "must name one column, got 2"),
        (
            lambda f: (f / "index_test_0.txt").write_text((f / "index_train_0.txt").read_text()),
            "split 0 of .* trains on rows that it tests on",
        ),
        (
            lambda f: (f / "data.txt").write_text(
                "nan " + (f / "data.txt").read_text().split(" ", 1)[1]
            ),
            "missing value in row 0",
        ),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(tmp_path, break_, message):
    break_(write(tmp_path / "drawn"))
    with pytest.raises(SystemExit, match=message) as refused:
        main(["--root", str(tmp_path), "--dataset", "drawn"], LITTLE)
    assert "\n" not in str(refused.value)


def test_a_set_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    write(tmp_path / "drawn")
    with pytest.raises(SystemExit, match="has no folder yaht; there are drawn"):
        main(["--root", str(tmp_path), "--dataset", "yaht"])


def test_indices_are_read_as_floats_tables_with_commas_and_single_rows(tmp_path):
    folder = write(tmp_path / "drawn", test_rows=1)
    text = (folder / "data.txt").read_text()
    blanks = read(tmp_path, "drawn", splits=1)
    (folder / "data.txt").write_text(text.replace(" ", ", "))
    commas = read(tmp_path, "drawn", splits=9)
    assert np.array_equal(blanks.inputs, commas.inputs)
    assert len(commas.splits) == 2
    assert len(commas.splits[0].test) == 1
    assert "e+0" in (folder / "index_test_0.txt").read_text()


def test_a_constant_column_is_centred_and_targets_keep_their_units(problem):
    rows = problem.splits[0].train
    scaling = Scaling.of(problem, rows)
    inputs, target = scaling.scaled(problem, rows)
    assert np.abs(inputs[:, 2]).max() < 1e-9
    assert target.std() == pytest.approx(1)
    assert scaling.target[1] == pytest.approx(problem.target[rows].std())


def test_precisions_are_the_published_ones_or_follow_the_target(tmp_path, problem):
    rows = problem.splits[0].train
    spread = problem.target[rows].std()
    assert precisions_of(problem, rows)[0] == pytest.approx((0.1 * spread) ** -2)
    (tmp_path / "drawn" / "tau_values.txt").write_text("0.25 0.5")
    assert precisions_of(read(tmp_path, "drawn", splits=1), rows) == (0.25, 0.5)


# ---- the networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
@pytest.mark.parametrize("heteroscedastic", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_gradient_is_that_of_autograd(activation, heteroscedastic, rate):
    setting = Candidate(activation, rate, rate, penalty=0.01, heteroscedastic=heteroscedastic)
    stack = Stack(3, 5, setting)
    torch.manual_seed(0)
    stack.flat.normal_(std=0.5)
    inputs, target = torch.randn(3, 8, 5), torch.randn(3, 8)
    masks = Masks.drawn((8,), 5, setting)
    stack.backward_(inputs, target, masks)
    stack.flat.requires_grad_()
    stack.first, stack.last, stack.last_bias = first, last, _ = stack._views(stack.flat)
    outputs = stack.forward(inputs, masks)
    if heteroscedastic:
        variance = F.softplus(outputs[:, 1]) + VARIANCE_FLOOR
        each = gaussian_negative_log_likelihood(outputs[:, 0], variance, target)
        loss = (each * variance.detach().sqrt()).mean(1)
    else:
        loss = (outputs[:, 0] - target).square().mean(1)
    loss = loss + 0.01 * (first[:, :-1].square().sum((1, 2)) + last.square().sum((1, 2)))
    (wanted,) = torch.autograd.grad(loss.sum(), stack.flat)
    assert torch.allclose(stack.gradient, wanted, atol=1e-4, rtol=1e-3)


def test_masks_together_fit_the_likelihood_of_their_mixture():
    setting = Candidate("relu", 0.3, together=4)
    stack = Stack(2, 5, setting)
    torch.manual_seed(0)
    stack.flat.normal_(std=0.3)
    inputs = torch.randn(2, 6, 5).repeat(1, 4, 1)  # six rows, four times
    target = torch.randn(2, 6).repeat(1, 4)
    masks = Masks.drawn((24,), 5, setting)
    stack.backward_(inputs, target, masks)
    stack.flat.requires_grad_()
    stack.first, stack.last, stack.last_bias = stack._views(stack.flat)
    outputs = stack.forward(inputs, masks).view(2, 2, 4, 6)
    means, variances = outputs[:, 0], F.softplus(outputs[:, 1]) + VARIANCE_FLOOR
    fit = [
        gaussian_mixture_log_likelihood(means[n], variances[n], target[n, :6]).mean()
        for n in range(2)
    ]
    (wanted,) = torch.autograd.grad(-sum(fit), stack.flat)
    assert torch.allclose(stack.gradient, wanted, atol=1e-5, rtol=1e-3)


def test_a_network_trains_the_same_alone_and_in_a_stack(problem):
    fit = problem.splits[0].train
    tracks = [Track(0, 0, fit, fit, (1.0,), seed=seed) for seed in (0, 1)]
    course = Course(steps=30, batch=8, rate=0.01)
    scaling = Scaling.of(problem, fit)
    both = trained(Job(problem, tuple(tracks), Candidate(), course, 1), [scaling] * 2)
    alone = trained(Job(problem, (tracks[0],), Candidate(), course, 1), [scaling])
    # Orders of rows are drawn for all networks of a stack in turn, the first network's first.
    assert torch.allclose(both.first[0], alone.first[0], atol=1e-5)
    assert not torch.allclose(both.first[0], both.first[1], atol=1e-2)


def test_scores_are_those_of_a_normal_distribution_in_the_targets_units(problem):
    split = problem.splits[0]
    setting = Candidate(heteroscedastic=False)
    track = Track(0, 0, split.train, split.test, (4.0, 9.0), seed=0)
    (score,) = run(Job(problem, (track,), setting, Course(40, 8, 0.01), samples=1))
    target = torch.tensor(problem.target[split.test])
    for number, variance in enumerate((4.0, 9.0)):
        density = torch.distributions.Normal(torch.tensor(score.mean), variance**0.5)
        wanted = density.log_prob(target)
        assert torch.allclose(torch.tensor(score.log_density[number]), wanted, rtol=1e-3)


def test_biases_are_never_dropped():
    masks = Masks.drawn((200,), 3, Candidate(rate=0.5, input_rate=0.5))
    assert masks.inputs[:, -1].eq(1).all()
    assert masks.inputs[:, 0].eq(0).any()
    assert masks.hidden.mean().item() == pytest.approx(1, abs=0.05)
    assert masks.hidden.shape == (200, UNITS)


# ---- the choice -------------------------------------------------------------------------------


def test_test_rows_change_neither_the_choice_nor_the_predictions(tmp_path, problem):
    rows = problem.splits[0].test
    table = np.loadtxt(tmp_path / "drawn" / "data.txt")
    table[rows, 3] += 1000
    np.savetxt(tmp_path / "drawn" / "data.txt", table)
    moved = read(tmp_path, "drawn", splits=1)
    first = columns.heteroscedastic_mc(read_first(problem), LITTLE, in_turn)
    other = columns.heteroscedastic_mc(moved, LITTLE, in_turn)
    assert first.choices == other.choices
    assert other.rmse[0] == pytest.approx(1000, rel=0.1)


def read_first(problem):
    from dataclasses import replace

    return replace(problem, splits=problem.splits[:1])


def test_folds_hold_out_training_rows_only_the_last_fifth_first():
    rows = np.arange(100, 150)
    parts = tuning.folds(rows)
    assert len(parts) == 5
    assert parts[0][1].tolist() == list(range(140, 150))
    assert sorted(np.concatenate([held for _, held in parts])) == rows.tolist()
    assert all(set(fit) | set(held) == set(rows) and len(fit) == 40 for fit, held in parts)
    assert len(tuning.folds(np.arange(5_000))) == 1


def test_a_network_that_diverged_is_not_chosen():
    settings = [Candidate("relu"), Candidate("silu")]
    curves = [np.array([np.nan, np.nan]), np.array([-9.0, -8.0])]
    choice = tuning._best(settings, (1.0, 2.0), curves)
    assert choice.candidate == settings[1]
    assert choice.scale == 2.0


def test_a_mixture_of_networks_is_the_mean_of_their_densities():
    scores = [Score(np.array([m]), np.log(np.array([[d]]))) for m, d in ((1.0, 0.2), (3.0, 0.6))]
    mixed = tuning.mixture(scores)
    assert mixed.mean == pytest.approx([2.0])
    assert np.exp(mixed.log_density) == pytest.approx(0.4)


# ---- what is told -----------------------------------------------------------------------------


def test_bounds_are_those_of_the_published_rows():
    told = {
        "dataset": "yacht",
        "rmse": [0.5, 0.7],
        "log_likelihood": [-0.8, -0.6],
        "heteroscedastic": {"rmse": [1.0, 1.0], "log_likelihood": [0.0, 0.0]},
        "homoscedastic_mc": {"rmse": [0.66, 0.68], "log_likelihood": [-1.25, -1.26]},
    }
    met = [met for _, met in show.bounds(told)]
    assert met == [True, True, False, True, True]
    assert show.bounds({"dataset": "other", "rmse": [1.0], "log_likelihood": [0.0]}) == []
