"""Dead units over a window of examples, of several layers and processes."""

import torch

from stablelightning.functional.monitor import FlatEnds, unit_statistics
from stablelightning.model.unit_record import STARTING_LOOKS, UnitRecord, pack

RELU, NONE = FlatEnds(dead_below=0.0), FlatEnds()


def row(*inputs):
    """What one process packs; ``None`` for a layer that did not run. Three units each."""
    seen = [
        None if z is None else unit_statistics(z.relu(), unit_dimension=1, inputs=z, ends=RELU)
        for z in inputs
    ]
    return pack(seen, [3] * len(inputs), torch.zeros(1))


def batch(*signs, rows=2):
    return torch.tensor([signs] * rows, dtype=torch.float32)


def record(window=4, layers=1):
    return UnitRecord([f"layer.{n}" for n in range(layers)], [3] * layers, window=window)


def looks(kept, *batches, ends=(RELU,)):
    return [kept.look(row(z)[None], ends)["layer.0"] for z in batches]


def test_deaths_are_against_the_first_looks():
    alive, last_dies, first_wakes = batch(-1, 1, 1), batch(-1, 1, -1), batch(1, 1, -1)
    kept = record()
    start = looks(kept, *[alive] * STARTING_LOOKS)
    assert ["dead" in seen for seen in start] == [False] * (STARTING_LOOKS - 1) + [True]
    assert round(start[-1]["dead"] * 3) == 1
    seen = looks(kept, last_dies, last_dies, first_wakes)
    assert [round(s["dead"] * 3) for s in seen] == [1, 2, 1]  # a window is two looks long
    assert [round(s["died"] * 3) for s in seen] == [0, 1, 1]
    assert [round(s["revived"] * 3) for s in seen] == [0, 0, 1]


def test_a_window_that_is_not_full_is_what_was_seen():
    kept = record(window=1000)
    seen = looks(kept, *[batch(1, 1, -1)] * STARTING_LOOKS)[-1]
    assert round(seen["dead"] * 3) == 1
    assert seen["full_window"] == 0.0


def test_functions_without_flat_ends_have_no_dead_units():
    seen = looks(record(), *[batch(-1, -1, -1)] * 6, ends=(NONE,))[-1]
    assert seen.keys() == {"activation_mean", "activation_std"}


def test_processes_are_taken_together():
    kept, alone = record(), record()
    parts = [torch.randn(2, 3), torch.randn(5, 3) + 1]
    both = kept.look(torch.stack([row(z) for z in parts]), [RELU])["layer.0"]
    whole = alone.look(row(torch.cat(parts))[None], [RELU])["layer.0"]
    assert both.keys() == whole.keys()
    for name, value in both.items():
        assert abs(value - whole[name]) < 1e-6
    assert torch.equal(kept.state_dict()["still"], alone.state_dict()["still"])


def test_a_process_in_which_a_layer_did_not_run_says_nothing_of_it():
    kept = record(layers=2)
    rows = torch.stack([row(batch(-1, -1, 1), None), row(batch(1, -1, 1), batch(1, 1, 1))])
    kept.look(rows, [RELU, RELU])
    assert kept.state_dict()["still"].tolist() == [0, 4, 0, 0, 0, 0]
    assert kept.state_dict()["rows"].tolist() == [4, 2]
    silent = kept.look(row(None, batch(-1, -1, -1))[None], [RELU, RELU])
    assert list(silent) == ["layer.1"]
    assert kept.state_dict()["still"].tolist() == [0, 4, 0, 2, 2, 2]


def test_state_of_other_layers_is_not_taken():
    first, second = record(layers=2), record()
    first.look(row(batch(-1, 1, 1), None)[None], [RELU, RELU])
    assert not second.load_state_dict(first.state_dict())
    assert second.state_dict()["still"].tolist() == [0, 0, 0]
