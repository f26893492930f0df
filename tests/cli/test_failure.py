"""One line and a status for every kind of exception."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from stablelightning.cli.failure import BROKEN, MEND, one_line
from stablelightning.errors import DataError, DivergedError


def state_dict_error(model: torch.nn.Module, state: dict) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    return caught.value


def test_ours_keep_their_words():
    assert one_line(DataError("rows must be > 0,\n got 0.")) == ("rows must be > 0, got 0.", MEND)


def test_a_report_of_giving_up_keeps_its_lines():
    assert one_line(DivergedError("gave up:\n  step 1")) == ("gave up:\n  step 1", MEND)


def test_file_errors_name_the_file():
    with pytest.raises(FileNotFoundError) as caught:
        Path("no/such/file.csv").read_text()
    line, status = one_line(caught.value)
    assert status == MEND
    assert line.startswith("no/such/file.csv must be a file that can be read")


def test_mismatched_shape_is_named():
    error = state_dict_error(torch.nn.Linear(3, 2), torch.nn.Linear(5, 2).state_dict())
    line, status = one_line(error)
    assert status == MEND
    assert "weight is (2, 5) in the checkpoint and (2, 3) in the model" in line


def test_missing_and_unexpected_parameters_are_named():
    linear = torch.nn.Linear(3, 2)
    assert "it has no bias" in one_line(state_dict_error(linear, {"weight": linear.weight}))[0]
    more = {**linear.state_dict(), "extra": torch.zeros(1)}
    assert "its extra is unknown" in one_line(state_dict_error(linear, more))[0]


def test_what_lightning_refuses_can_be_mended():
    line, status = one_line(MisconfigurationException("no such\n accelerator"))
    assert status == MEND
    assert line == "Lightning refuses these settings: no such accelerator"


X = torch.zeros(4, 3)
MISFITS = [
    (lambda: torch.nn.Linear(5, 2)(X), "got rows of 3 for a layer of 5; set", "in_features=3"),
    (
        lambda: torch.nn.Conv2d(1, 2, 3)(torch.zeros(4, 3, 8, 8)),
        "got 3 for a layer of 1; set",
        "in_channels=3",
    ),
    (
        lambda: torch.nn.functional.cross_entropy(X, torch.full((4,), 3)),
        "got the class 3 (counted from 0)",
        "out_features",
    ),
]


@pytest.mark.parametrize(("misfit", "received", "remedy"), MISFITS)
def test_a_network_that_does_not_fit_its_data_can_be_mended(misfit, received, remedy):
    with pytest.raises((RuntimeError, IndexError)) as caught:
        misfit()
    line, status = one_line(caught.value)
    assert status == MEND
    assert received in line
    assert f"--model.network.{remedy}" in line
    assert "--debug" in line


def test_the_unexpected_is_status_one_and_points_to_debug():
    line, status = one_line(KeyError("x"))
    assert status == BROKEN
    assert "KeyError" in line
    assert "--debug" in line
    assert "\n" not in line


def test_a_loss_without_a_graph_can_be_mended():
    with pytest.raises(RuntimeError) as caught:
        torch.tensor(1.0).backward()
    line, status = one_line(caught.value)
    assert status == MEND
    assert line.startswith("a loss must depend on the model's parameters")


def test_a_plateau_of_what_nobody_logs_can_be_mended():
    text = (
        "ReduceLROnPlateau conditioned on metric val/los which is not available. Available metrics "
        "are: ['train/loss', 'val/loss']. Condition can be set using `monitor` key in lr scheduler"
    )
    line, status = one_line(MisconfigurationException(text))
    assert status == MEND
    assert "got val/los beside 'train/loss', 'val/loss'; set --model.scheduler.monitor" in line


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        raise DataError(f"an image must be readable, got 'cat/{row}.jpg' (cut: yes); repair it.")


def test_an_error_in_a_process_of_a_loader_keeps_its_words_alone():
    loader = torch.utils.data.DataLoader(Unreadable(), num_workers=1)
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert "Traceback" in str(caught.value)
    told = "an image must be readable, got 'cat/0.jpg' (cut: yes); repair it."
    assert one_line(caught.value) == (told, MEND)
