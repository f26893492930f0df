"""Bad input: one line with rule, what was received and remedy; status 2; nothing left behind."""

from pathlib import Path

import pytest

from tests.cli.commands import stablelightning

ROWS = "".join(f"{i},{i * 0.5},{i % 7}\n" for i in range(60))


def refused(in_process, capsys, *arguments: str) -> str:
    """The one line of the error, after checking that nothing was left in the working folder."""
    before = sorted(Path.cwd().rglob("*"))
    assert in_process(*arguments) == 2
    assert sorted(Path.cwd().rglob("*")) == before
    error = capsys.readouterr().err
    assert error.startswith("stablelightning: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--stable.uncertainty.samples=0", "samples must be a whole number >= 1, got 0"),
        ("--stable.uncertainty.tolerance=-1", "tolerance must be > 0, got -1"),
        ("--stable.uncertainty.samples=lots", "samples must be a whole number, got 'lots'"),
        ("--model.network.dropout=1.0", "dropout must be in [0, 1), got 1.0"),
        ("--model.network.dropout=-0.1", "dropout must be in [0, 1), got -0.1"),
        ("--model.optimizer.lr=fast", "model.optimizer.lr must be a number, got 'fast'"),
        ("--data.batch_size=0", "batch_size must be a whole number >= 1, got 0"),
        ("--trainer.max_epochs=many", "max_epochs must be a whole number or null, got 'many'"),
        ("--trainer.accelerator=gpuu", "invalid accelerator name"),
        ("--checkpoint.mode=middle", "must be one of 'min', 'max', got 'middle'"),
    ],
)
def test_a_value_out_of_its_range(in_process, capsys, setting, said):
    assert said in refused(in_process, capsys, "run", "digits", setting)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--trainer.max_epoch=3", "'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("--max_epochs=3", "no setting 'max_epochs'; did you mean 'trainer.max_epochs' or"),
        ("--samples=100", "no setting 'samples'; did you mean 'stable.uncertainty.samples'?"),
        ("--epochs=3", "did you mean 'trainer.max_epochs' or 'trainer.min_epochs'"),
        ("--seed=3", "did you mean 'seed_everything'?"),
        ("--trainr.max_epochs=3", "'trainr'; did you mean 'trainer'?"),
        ("--stable.uncertanty=null", "did you mean 'stable.uncertainty'?"),
        ("--stable.uncertainty.sampels=3", "did you mean 'samples'?"),
        ("--model.network.dropot=0.1", "MLP has no setting 'dropot' (under model.network)"),
        ("--model.netwrk=MLP", "did you mean 'network'?"),
        ("--model.network=MPL", "did you mean 'MLP'?"),
        ("--model.optimizer=Adm", "did you mean 'Adam'?"),
        ("--data=DigitData", "did you mean 'DigitsData'?"),
        ("--stable.uncertainty=EstimateUncertanty", "did you mean 'EstimateUncertainty'?"),
        ("--model=nowhere.Net", "No module named 'nowhere'"),
        ("stray", "settings must be given as --key=value, got 'stray'"),
    ],
)
def test_a_misspelt_name_on_the_line(in_process, capsys, setting, said):
    assert said in refused(in_process, capsys, "run", "digits", setting)


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ("trainer: {max_epoch: 3}", "did you mean 'trainer.max_epochs'?"),
        ("stable: {uncertanty: null}", "did you mean 'stable.uncertainty'?"),
        ("stable: {uncertainty: {init_args: {sampels: 3}}}", "did you mean 'samples'?"),
        ("model: {init_args: {network: {init_args: {hiden: [3]}}}}", "did you mean 'hidden'?"),
        ("trainer: {max_epochs: 3", "overlay.yaml must be YAML that can be read"),
        ("- trainer\n- model", "overlay.yaml must hold settings under their keys"),
    ],
)
def test_a_bad_overlay(in_process, capsys, overlay, said):
    Path("overlay.yaml").write_text(overlay)
    assert said in refused(in_process, capsys, "run", "digits", "--add", "overlay.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "digit"), "got 'digit'; did you mean 'digits'?"),
        (("run", "digits", "--add", "multigpu"), "got 'multigpu'; did you mean 'multi_gpu'?"),
        (("run", "nowhere.yaml"), "recipe must be a file that exists, got 'nowhere.yaml'"),
        (("run",), "run needs a recipe as its first argument"),
        (("run", "digits", "--add"), "--add: expected one argument"),
        (("run", "digits", "--output", "/proc/here"), "folder that can be written"),
        (("doctor", "digits", "--aply"), "there is no option --aply; did you mean --apply?"),
        (("predict", "nowhere"), "predict needs the folder of a run"),
        (("fit",), "a recipe must give model, and none is given"),
        (("fit", "--config=nowhere.yaml"), "config must be a file that exists"),
        (("test", "--confg=x.yaml"), "did you mean 'config'?"),
    ],
)
def test_a_name_or_place_that_is_not_there(in_process, capsys, arguments, said):
    assert said in refused(in_process, capsys, *arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b,c\n" + ROWS, "target must be a column of table.csv, got 'target'"),
        ("a,b,target\nx,1,2\n" + ROWS, "column 'a' of table.csv must hold numbers, got 'x'"),
        ("a,b,target\n", "must have rows"),
        ("a,b,target\n,1,2\n" + ROWS, "numbers must be present and finite"),
        (None, "a data file must exist, got 'table.csv'"),
    ],
)
def test_a_bad_table(in_process, capsys, content, said):
    if content is not None:
        Path("table.csv").write_text(content)
    assert said in refused(in_process, capsys, "run", "diabetes", "--data.path=table.csv")


def test_a_table_of_another_width_leaves_no_folder(in_process, capsys):
    Path("table.csv").write_text("a,b,target\n" + ROWS)
    assert in_process("run", "diabetes", "--data.path=table.csv") == 2
    assert "set its width, such as --model.network.in_features=2" in capsys.readouterr().err
    assert [path.name for path in Path.cwd().iterdir()] == ["table.csv"]


def test_a_class_without_an_output_is_told(in_process, capsys):
    assert in_process("run", "digits", "--data.held_out=[]", "--trainer.max_epochs=1") == 2
    assert "set --model.network.out_features" in capsys.readouterr().err


def test_early_stopping_without_a_validation_set_is_told(in_process, capsys):
    assert in_process("run", "digits", "--data.val_fraction=0", "--trainer.max_epochs=1") == 2
    assert "keep a validation set" in capsys.readouterr().err


def test_a_model_with_nothing_to_sample_is_refused_before_training(in_process, capsys):
    off = ("--model.network.dropout=0", "--trainer.logger=false")
    error = refused(
        in_process, capsys, "run", "digits", "--trainer.enable_progress_bar=false", *off
    )
    assert "stable.uncertainty to null" in error


def test_a_process_of_its_own_ends_with_status_two(tmp_path):
    done = stablelightning("run", "digits", "--trainer.max_epoch=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
