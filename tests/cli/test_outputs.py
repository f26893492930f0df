"""A network that leaves its number of outputs open gets as many as the data has classes."""

import pytest
import torch
import yaml
from PIL import Image

from stablelightning.cli.recipes import START, shipped
from stablelightning.cli.run import Plan
from stablelightning.cli.session import RunCLI

HERE = ("--trainer.accelerator=cpu", "--trainer.logger=false", "--stable.uncertainty=null")


class Classifier(torch.nn.Linear):
    """As a backbone does: the outputs of its own training, where nobody wants another number."""

    def __init__(self, num_outputs: int | None = None, pixels: int = 64) -> None:
        super().__init__(pixels, num_outputs or 1000)

    def forward(self, inputs):
        return super().forward(inputs.flatten(1))


NETWORK = f"--model.network={__name__}.Classifier"


def session(tmp_path, *settings):
    return RunCLI(Plan(shipped(START)["digits"], (), (*HERE, *settings), tmp_path / "out"))


def test_the_data_says_how_many(tmp_path):
    cli = session(tmp_path, NETWORK)
    assert cli.model.network.out_features == 8
    # It stands in the recipe that is left, and in what a checkpoint says of the module.
    assert cli.recipe["model"]["init_args"]["network"]["init_args"]["num_outputs"] == 8
    network = cli.model.hparams["network"]
    assert network["init_args"]["num_outputs"] == 8


def test_a_number_that_was_given_is_kept_and_the_data_not_asked(tmp_path):
    cli = session(
        *(tmp_path, NETWORK, "--model.network.num_outputs=3"),
        "--data={class_path: ImageFolderData, init_args: {root: nowhere}}",
    )
    assert cli.model.network.out_features == 3


def test_data_that_does_not_say_leaves_it_open(tmp_path):
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    data = {"class_path": "UnlabelledImages", "init_args": {"root": str(tmp_path)}}
    cli = session(tmp_path, NETWORK, f"--data={yaml.safe_dump(data, default_flow_style=True)}")
    assert cli.model.network.out_features == 1000


def test_a_missing_folder_is_told_before_the_network_is_made(in_process, capsys, monkeypatch):
    monkeypatch.setattr(Classifier, "__init__", lambda *a, **k: pytest.fail("made"))
    data = "--data={class_path: ImageFolderData, init_args: {root: nowhere}}"
    assert in_process("run", "digits", NETWORK, data) == 2
    assert "root must be a folder, got 'nowhere'" in capsys.readouterr().err
    config = "--config=" + str(shipped(START)["digits"])
    assert in_process("fit", config, NETWORK, data) == 2
    assert "root must be a folder, got 'nowhere'" in capsys.readouterr().err


def test_a_null_on_the_line_is_null_two_levels_down_as_well(tmp_path):
    cli = session(tmp_path, NETWORK, "--model.network.num_outputs=null", "--data.held_out=[]")
    assert cli.model.network.out_features == 10
