"""A network that leaves its inputs or outputs open gets as many as the data has."""

import pytest
import torch
import yaml
from PIL import Image

from stablelightning.cli.recipes import START, shipped
from stablelightning.cli.run import Plan
from stablelightning.cli.session import RunCLI
from stablelightning.errors import RecipeError
from stablelightning.nn import MLP

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


def table(tmp_path, columns: int, **target):
    rows = [[str(row * column) for column in range(columns)] for row in range(40)]
    names = [f"x{column}" for column in range(columns)]
    (name, values), *_ = target.items()
    lines = [",".join([*names, name])]
    lines += [",".join([*row, str(values(number))]) for number, row in enumerate(rows)]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines))
    return f"--data.path={path}", f"--data.target={name}"


def tabular(tmp_path, *settings):
    return RunCLI(Plan(shipped(START)["tabular"], (), (*HERE, *settings), tmp_path / "out"))


def test_one_command_takes_any_table(tmp_path):
    cli = tabular(tmp_path, *table(tmp_path, 5, price=lambda row: row * 1.5))
    cli.check_data()
    batch = next(iter(cli.datamodule.train_dataloader()))
    assert cli.model(batch[0]).mean.shape == batch[1].shape
    settings = cli.recipe["model"]["init_args"]["network"]["init_args"]
    assert (settings["in_features"], settings["out_features"]) == (5, 1)


def test_a_target_of_classes_needs_three_settings(tmp_path):
    cli = tabular(
        *(tmp_path, *table(tmp_path, 3, kind=lambda row: "abcd"[row % 4])),
        *("--data.task=classification", "--model.task=classification"),
        "--model.network.variance=false",
    )
    cli.check_data()
    inputs, _ = next(iter(cli.datamodule.train_dataloader()))
    assert cli.model(inputs).shape == (len(inputs), 4)


def test_a_network_that_nobody_tells_its_inputs_says_so():
    with pytest.raises(RecipeError, match="in_features must be a number where the data does not"):
        MLP(None)
    with pytest.raises(RecipeError, match="out_features must be a number"):
        MLP(3, None)
