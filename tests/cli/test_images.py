"""200 photographs in folders: fine-tuned with one command; new ones predicted from what it left."""

import json
from pathlib import Path

import pytest
import torch

import stablelightning as sl
from stablelightning.model.stochastic import stochastic_modules
from stablelightning.module import StableModule
from tests.cli.commands import stablelightning
from tests.data.drawn import SHAPES, draw_photographs

pandas = pytest.importorskip("pandas")
models = pytest.importorskip("torchvision.models")

SMALL = ("--data.image_size=32", "--data.num_workers=0", "--trainer.accelerator=cpu")
QUICK = (*SMALL, "--trainer.max_epochs=2", "--stable.latency=null", "--trainer.logger=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The recipe as a user runs it, but for weights that are fetched."""
    cwd = tmp_path_factory.mktemp("photographs")
    draw_photographs(cwd / "my_photos", count=50)
    draw_photographs(cwd / "new" / "from the camera", count=2, seed=1)
    torch.save(models.resnet18().state_dict(), cwd / "resnet18.pt")
    options = ("--data.root", "my_photos", "--model.network.weights=resnet18.pt", "--output=out")
    done = stablelightning("run", "images", *options, *QUICK, cwd=cwd, script=True)
    assert done.returncode == 0, done.stderr
    (cwd / "resnet18.pt").unlink()  # from now on the checkpoint is enough
    return done, cwd


@pytest.fixture(scope="module")
def module(finished) -> StableModule:
    best = finished[1] / "out" / "checkpoints" / "best.ckpt"
    return StableModule.load_from_checkpoint(best, map_location="cpu").eval()


def test_groups_open_one_after_the_other_and_the_report_says_how_good_it_is(finished):
    done, cwd = finished
    said = done.stdout + done.stderr
    assert "opened network.fc; 1 of 10 groups" in said
    assert "opened network.layer4.1; 2 of 10 groups" in said
    assert "expected calibration error" in done.stdout
    summary = json.loads((cwd / "out" / "summary.json").read_text())
    assert 0 <= summary["uncertainty/accuracy_mc"] <= 1
    assert summary["uncertainty/epistemic"] > 0


def test_predictions_carry_the_path_of_their_photograph_and_the_name_of_its_class(finished):
    table = pandas.read_parquet(finished[1] / "out" / "predictions.parquet")
    assert len(table) == 40
    names = sorted(SHAPES)
    assert [Path(file).parent.name for file in table["file"]] == [names[i] for i in table["target"]]
    assert list(table["prediction_name"]) == [names[i] for i in table["prediction"]]
    assert all((finished[1] / file).is_file() for file in table["file"])


def test_new_photographs_are_predicted_without_the_old_ones(finished, in_process, monkeypatch):
    _, cwd = finished
    monkeypatch.chdir(cwd)
    (cwd / "my_photos").rename(cwd / "gone")
    try:
        assert in_process("predict", "out", "--data", "new", "--output=new.parquet") == 0
    finally:
        (cwd / "gone").rename(cwd / "my_photos")
    table = pandas.read_parquet("new.parquet")
    drawn = [f"new/from the camera/{name}/00{n}.jpg" for name in sorted(SHAPES) for n in (0, 1)]
    assert list(table["file"]) == drawn
    assert set(table["prediction_name"]) <= set(SHAPES)
    assert (table["epistemic"] > 0).all()


def test_the_head_alone_is_sampled_and_the_backbone_computed_once(module):
    network = module.network
    inputs = torch.randn(4, 3, 32, 32)
    random = stochastic_modules(network, lambda: network(inputs))
    assert random.flagged == [network.fc.added_dropout]
    sl.mc_dropout(network, inputs, samples=20, seed=0)  # surveys the model
    passes = []
    network.conv1.register_forward_hook(lambda *_: passes.append(1))
    prediction = sl.mc_dropout(network, inputs, samples=20, seed=0)
    assert len(passes) == 1
    assert prediction.samples_used == 20
    assert (prediction.epistemic > 0).all()


def test_what_the_data_was_prepared_by_is_in_the_checkpoint(finished):
    best = finished[1] / "out" / "checkpoints" / "best.ckpt"
    state = torch.load(best, weights_only=True)["ImageFolderData"]
    assert state["class_names"] == sorted(SHAPES)
    assert state["preprocessing"]["image_size"] == 32
    assert state["preprocessing"]["crop_share"] == 0.875  # of the weights of torchvision


def refused(in_process, capsys, *arguments: str) -> str:
    before = sorted(Path.cwd().rglob("*"))
    assert in_process("run", "images", *SMALL, *arguments) == 2
    assert sorted(Path.cwd().rglob("*")) == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("stablelightning: error: ")
    return error


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: root.rename("other"), "root must be a folder, got 'photos'"),
        (lambda root: (root / "square").rename("other"), "at least two classes, got circle in"),
        (
            lambda root: (root / "circle" / "001.jpg").write_bytes(b"\xff\xd8\xff cut"),
            "got 1 of 8 that cannot be: photos/circle/001.jpg",
        ),
        (
            lambda root: draw_photographs(root / "val", count=1, classes=("cross",)),
            "must have a folder train beside it, got 'photos/val'",
        ),
    ],
)
def test_bad_folders_are_told_before_training(in_process, capsys, spoil, said):
    draw_photographs(Path("photos"), count=4, size=32, classes=("circle", "square"))
    spoil(Path("photos"))
    fresh = ("--model.network.weights=null", "--model.network.name=timm/test_resnet")
    assert said in refused(in_process, capsys, *fresh)
