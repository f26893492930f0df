"""The benchmark's own pieces: they are used rarely, and must not rot."""

import json

import pytest
import torch

from tests.benchmarks.stability import theory, training
from tests.benchmarks.stability.__main__ import main
from tests.benchmarks.stability.judge import judge
from tests.benchmarks.stability.networks import draw_by_hand, plain, residual, weight_layers
from tests.benchmarks.stability.rows import BATCH_NORM, COLUMNS, OURS, ROWS, TWO_HIDDEN, TWO_LAYERS
from tests.benchmarks.stability.training import Result


def test_a_quick_run_of_one_row_writes_its_numbers_and_picture(tmp_path, capsys):
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    arguments = ["--rows", "6x100 sigmoid", "--quick", "--training-only", "--processes", "1"]
    main([*arguments, "--json", str(numbers), "--figure", str(picture)])
    (row,) = json.loads(numbers.read_text())["training"]
    assert set(row["cells"]) == set(COLUMNS)
    assert row["notes"]["found"]
    assert "6x100 sigmoid" in capsys.readouterr().out
    assert picture.stat().st_size > 0


def test_a_row_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(SystemExit, match="30x128 Mish"):
        main(["--rows", "30x128 Mash", "--training-only"])


def test_every_column_of_a_seed_sees_the_same_batches(monkeypatch):
    seen: list[torch.Tensor] = []
    inputs = torch.arange(130.0)[:, None].expand(-1, 64)
    data = inputs, torch.zeros(130, dtype=torch.long)
    row = ROWS["6x100 sigmoid"].scaled(0.01)
    for hidden in (1, 3):
        torch.manual_seed(0)
        model = row.shallow(hidden)
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 0].clone()))
        training._train(row, model, data, seed=4)
    assert [len(batch) for batch in seen] == [64, 64, 2] * 2
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_the_digits_are_split_once_by_class_and_standardised_by_the_training_images():
    data = training.digits(False)
    (train, target), (test, wanted) = data.train, data.test
    assert len(train) + len(test) == 1797
    assert train.mean().abs() < 1e-5
    assert train.std() == pytest.approx(1, abs=1e-3)
    shares = [torch.bincount(t, minlength=10) / len(t) for t in (target, wanted)]
    assert (shares[0] - shares[1]).abs().max() < 0.005
    assert training.digits(True).train[0].shape[1:] == (1, 8, 8)


def test_by_hand_is_he_before_relu_and_glorot_before_a_sum():
    torch.manual_seed(0)
    model = residual(1, 400, "relu")
    draw_by_hand(model, "relu")
    first, last = weight_layers(model)[1:3]
    assert first.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert last.weight.std().item() == pytest.approx((1 / 400) ** 0.5, rel=0.02)
    assert not last.bias.any()


def test_by_hand_is_lecun_before_selu():
    torch.manual_seed(0)
    model = plain(2, 400, "selu")
    draw_by_hand(model, "selu")
    assert weight_layers(model)[1].weight.std().item() == pytest.approx(400**-0.5, rel=0.02)


def _result(column: str, seed: int, accuracy: float) -> Result:
    return Result("30x128 ReLU", column, seed, accuracy, 0.0, {})


def test_bounds_hold_against_the_better_shallow_net_and_the_best_column():
    row = ROWS["30x128 ReLU"]
    shallow = [_result(TWO_LAYERS, s, 95.0) for s in range(3)]
    shallow += [_result(TWO_HIDDEN, s, 96.0) for s in range(3)]
    ours = [_result(OURS, s, a) for s, a in enumerate((92.0, 95.5, 97.0))]
    best = [_result(BATCH_NORM, s, 95.75) for s in range(3)]
    verdict = judge(row, [*shallow, *ours, *best])
    assert list(verdict.bounds.values()) == [0.5, -1.0, -0.5]
    assert not verdict.met
    assert judge(row, [*shallow, _result(OURS, 0, 96.0)]).met


def test_gains_of_the_package_are_those_in_closed_form():
    assert theory.worst_gain_error(theory.closed_form_gains()) < 1e-6


def test_the_window_of_the_sigmoid():
    window = theory.sigmoid_window()
    assert window["least weight"] == pytest.approx(4, abs=0.02)
    assert window["widest range"] == pytest.approx(0.45, abs=0.01)
    assert window["at weight"] == pytest.approx(6.9, abs=0.2)
    assert window["largest difference"] < 1e-3


@pytest.mark.parametrize("activation", ["relu", "selu", "tanh"])
def test_signals_over_depth_follow_the_theory(activation):
    profile = theory.depth_profile(activation, initialized=True, depth=24, width=128)
    assert len(profile["variance"]) == 24
    assert profile["variance"][-1] == pytest.approx(profile["variance in theory"][-1], rel=0.05)
    assert profile["cosine"][-1] == pytest.approx(profile["cosine in theory"][-1], abs=0.03)


def test_by_hand_the_cosine_grows_with_depth_as_in_theory():
    profile = theory.depth_profile("relu", initialized=False, depth=12, width=256)
    assert profile["cosine"][-1] > profile["cosine"][0] + 0.2
    assert profile["cosine"][-1] == pytest.approx(profile["cosine in theory"][-1], abs=0.06)
