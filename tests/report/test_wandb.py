"""The W&B run: never in the way of a training, complete in its file, and without secrets."""

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonargparse
import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from stablelightning.errors import RecipeError
from stablelightning.report.wandb import (
    RunLogger,
    _say_once,
    finish_run,
    log_config,
    log_figure,
    log_summary,
    log_table,
)
from tests.report.offline import read_offline_run
from tests.report.servers import answering, closed_port, silent

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def wandb_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no mode, no home of the developer's; and no service left running."""
    import wandb
    from wandb.sdk.lib import wbauth

    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    yield
    if wandb.run is not None:
        wandb.finish()
    wbauth.unauthenticate_session(update_settings=False)
    wandb.teardown()


def a_figure() -> Figure:
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    return figure


class Logs(BoringModel):
    """Logs at every stage, with a hyperparameter that is a secret."""

    def __init__(self, rate: float = 0.1, password: str = "hunter2") -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("validation/loss", self(batch).sum())

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("test/loss", self(batch).sum())


def trainer(logger: Logger | list[Logger], folder: Path) -> L.Trainer:
    return L.Trainer(
        logger=logger,
        max_epochs=1,
        limit_train_batches=6,
        limit_val_batches=2,
        limit_test_batches=2,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        accelerator="cpu",
    )


def test_without_a_key_every_metric_is_in_the_offline_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = RunLogger("digits", save_dir=tmp_path)
    training = trainer(logger, tmp_path)
    model = Logs()
    training.fit(model)
    training.test(model)
    assert log_figure(training.loggers, "uncertainty/reliability", a_figure())
    cells = [[1, "a", torch.rand(8, 8)], [None, 2.5, torch.rand(8, 8)]]
    assert log_table(training.loggers, "uncertainty/examples", ["x", "y", "image"], cells)
    assert log_config(training.loggers, {"data": {"root": "digits", "api_key": "hunter2"}})
    assert log_summary(training.loggers, {"ood/far/auroc_total": 0.9, "ood/far/none": None})
    finish_run(training.loggers)

    run = read_offline_run(tmp_path)
    logged = {"train/loss", "validation/loss", "test/loss", "ood/far/auroc_total"}
    assert logged | {"trainer/global_step", "epoch"} <= run.metrics
    assert "uncertainty/reliability/path" in run.metrics
    assert "uncertainty/examples/path" in run.metrics
    assert not any(key.startswith("ood/far/none") for key in run.metrics)
    steps = [row["trainer/global_step"] for row in run.history if "train/loss" in row]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert logged <= set(run.summary)
    assert run.summary["ood/far/auroc_total"] == 0.9
    assert run.config["rate"] == 0.1
    assert run.config["password"] == "[redacted]"
    assert run.config["data"] == {"root": "digits", "api_key": "[redacted]"}
    assert run.project == "digits"
    assert run.exit_code == 0
    (picture,) = tmp_path.rglob("media/images/uncertainty/*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    told = [line for line in capsys.readouterr().err.splitlines() if "wandb sync" in line]
    assert told == [training.loggers[0].location]
    assert told[0].startswith("W&B is offline: no API key was found. The run lies in ")
    folder = Path(told[0].rpartition(" ")[2])
    assert list(folder.glob("run-*.wandb"))


def test_a_record_larger_than_a_block_is_whole(tmp_path: Path) -> None:
    logger = RunLogger(save_dir=tmp_path)
    log_config(logger, {"long": "x" * 100_000})
    finish_run(logger)
    assert read_offline_run(tmp_path).config["long"] == "x" * 100_000


def test_a_closed_port_starts_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = RunLogger(save_dir=tmp_path, mode="online")
    logger.log_metrics({"a/x": 1.0})
    finish_run(logger)
    assert str(logger.location).startswith(f"W&B is offline: {url} did not answer. ")
    assert "a/x" in read_offline_run(tmp_path).metrics


def test_a_silent_server_starts_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        logger = RunLogger(save_dir=tmp_path, patience=4.0)
        logger.log_metrics({"a/x": 1.0})
        finish_run(logger)
    assert server.requests  # it was asked, and given up on
    assert f"offline: {server.url} did not answer" in str(logger.location)
    assert "a/x" in read_offline_run(tmp_path).metrics


def test_a_server_that_refuses_the_key_starts_offline_and_leaves_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(200, post=401) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        logger = RunLogger(save_dir=tmp_path)
        logger.log_metrics({"a/x": 1.0})
        finish_run(logger)
    assert any(line.startswith("POST") for line in server.requests)
    assert "offline: the server did not start a run (" in str(logger.location)
    assert "refused here" in str(logger.location)
    runs = [folder for folder in (tmp_path / "wandb").glob("*run-*") if not folder.is_symlink()]
    assert [run.name.startswith("offline-run-") for run in runs] == [True]
    assert "a/x" in read_offline_run(tmp_path).metrics


def test_a_malformed_key_starts_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "short")
        logger = RunLogger(save_dir=tmp_path)
        logger.log_metrics({"a/x": 1.0})
        finish_run(logger)
    assert "a/x" in read_offline_run(tmp_path).metrics


def test_a_key_that_wandb_cannot_read_at_all_costs_only_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f" {KEY}")
    logger = RunLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"wandb must be able to start.*goes on without W&B"):
        trainer(logger, tmp_path).fit(Logs())
    finish_run(logger)
    assert logger.location is None
    assert not list(tmp_path.rglob("*.wandb"))


def test_the_environment_takes_precedence_over_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(200) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_MODE", "dryrun")
        logger = RunLogger(save_dir=tmp_path, mode="online")
        logger.log_metrics({"a/x": 1.0})
        finish_run(logger)
    assert server.requests == []
    assert str(logger.location).startswith("W&B is offline: mode is offline.")


@pytest.mark.parametrize("by", ["recipe", "environment"])
def test_disabled_leaves_nothing(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = RunLogger(save_dir=tmp_path, mode="disabled" if by == "recipe" else "auto")
    trainer(logger, tmp_path).fit(Logs())
    assert log_figure(logger, "a/x", a_figure())
    finish_run(logger)
    assert logger.location is None
    assert not list(tmp_path.rglob("*.wandb"))


def test_bad_arguments_die_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"mode must be one of auto, .*, got 'of'"):
        RunLogger(mode="of")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"patience must be > 0 seconds, got -1"):
        RunLogger(patience=-1)
    with pytest.raises(RecipeError, match=r"options must not hold offline, settings"):
        RunLogger(options={"settings": {}, "offline": True})
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(RecipeError, match=r"WANDB_MODE must be one of .*, got 'sometimes'"):
        RunLogger()


def test_project_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RunLogger().name == "stablelightning"
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    assert RunLogger().name == "from-environment"
    options = {"tags": ["first"], "config": {"secret": "hunter2", "plain": 1}}
    logger = RunLogger("mine", name="one", save_dir=tmp_path, options=options)
    assert logger.name == "mine"
    assert logger.experiment.name == "one"
    assert logger.experiment.tags == ("first",)
    finish_run(logger)
    run = read_offline_run(tmp_path)
    assert (run.config["secret"], run.config["plain"]) == ("[redacted]", 1)


def test_a_recipe_can_name_it() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Logger, "logger")
    recipe = """
    logger:
      class_path: stablelightning.report.wandb.RunLogger
      init_args:
        project: digits
        mode: offline
        patience: 5
        options: {tags: [first]}
    """
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # before 4.49
    made = instantiate(parser.parse_string(recipe)).logger
    assert isinstance(made, RunLogger)
    assert made.name == "digits"


def test_other_ranks_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RunLogger(save_dir=tmp_path / "run")
    logger.experiment.log({"a/x": 1.0})
    logger.log_hyperparams({"rate": 0.1})
    assert not log_figure(logger, "a/x", a_figure())
    assert not log_summary(logger, {"a/x": 1.0})
    finish_run(logger)
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_users_own_is_used(tmp_path: Path) -> None:
    import wandb

    own = wandb.init(mode="offline", dir=tmp_path, project="own")
    logger = RunLogger("other", save_dir=tmp_path)
    with pytest.warns(UserWarning, match="wandb run already in progress"):
        assert logger.experiment is own
    own.finish()


def test_a_failed_run_says_so_and_the_next_one_is_new(tmp_path: Path) -> None:
    logger = RunLogger(save_dir=tmp_path / "first")
    logger.log_metrics({"a/x": 1.0})
    finish_run([logger], failed=True)
    first = logger.location
    logger.log_metrics({"a/x": 1.0})
    assert logger.location != first
    finish_run(logger)
    files = sorted((tmp_path / "first").rglob("*.wandb"))
    assert {read_offline_run(file).exit_code for file in files} == {0, 1}


def test_a_spawned_process_gets_the_same_run(tmp_path: Path) -> None:
    logger = RunLogger(save_dir=tmp_path)
    logger.log_metrics({"parent/x": 1.0})
    copy = pickle.loads(pickle.dumps(logger))
    assert copy.version == logger.version
    assert copy.location == logger.location
    finish_run(logger)


class Pictures(Logger):
    """A logger as TensorBoard's, as far as figures go."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, Figure] = {}

    @property
    def name(self) -> str:
        return "pictures"

    @property
    def version(self) -> int:
        return 0

    @property
    def experiment(self) -> "Pictures":
        return self

    def add_figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(self, params: dict[str, object]) -> None: ...


def test_other_loggers_take_what_they_can_and_the_rest_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _say_once.cache_clear()  # another test may have heard it
    table = CSVLogger(tmp_path)
    pictures = Pictures()
    figure = a_figure()
    with caplog.at_level(logging.INFO):
        assert log_figure([table, pictures], "a/figure", figure)
        assert not log_figure(table, "a/other", figure)
        assert not log_table(table, "a/table", ["x"], [[1]])
        assert not log_config(table, {"rate": 0.1})
    assert pictures.figures == {"a/figure": figure}
    said = [message for message in caplog.messages if message.startswith("CSVLogger holds no")]
    assert [message.split()[3].rstrip(";") for message in said] == ["figures", "tables", "recipes"]
    assert log_summary([table, pictures], {"ood/far/auroc": 0.5, "a/none": None})
    written = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "ood/far/auroc" in written
    assert "a/none" not in written


def test_a_run_that_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: object, reason: str) -> str:
        raise AttributeError("sync_dir is gone")

    monkeypatch.setattr("stablelightning.report.wandb._location", broken)
    with pytest.raises(AttributeError, match="sync_dir is gone"):
        log_config(RunLogger(save_dir=tmp_path, mode="disabled"), {"rate": 0.1})


def test_no_logger_is_no_error() -> None:
    assert not log_figure(None, "a/x", a_figure())
    assert not log_table([], "a/x", [], [])
    assert not log_config(None, {})
    assert not log_summary(None, {})
    finish_run(None)


SCRIPT = """
import sys
from pathlib import Path
import lightning as L
from stablelightning.report.wandb import RunLogger, log_config, finish_run
from tests.report.test_wandb import Logs, trainer

folder = Path(sys.argv[1])
logger = RunLogger("digits", save_dir=folder)
print("printed-secret-of-the-program")
trainer(logger, folder).fit(Logs())
log_config(logger, {"trainer": {"secret": "hunter2"}, "rate": 0.25, "address": "db://u:hunter2@h"})
finish_run(logger)
assert "wandb" in sys.modules
"""


def test_no_secret_of_environment_or_command_line_is_stored(tmp_path: Path) -> None:
    planted = {
        "WANDB_API_KEY": KEY,
        "MY_TOKEN": "tokenvalue123",
        "SOME_VARIABLE": "value-of-some-variable",
        "WANDB_BASE_URL": f"http://127.0.0.1:{closed_port()}",
        "PYTHONPATH": os.getcwd(),
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), "--trainer.secret=hunter2"]
    done = subprocess.run(
        command, env={**os.environ, **planted}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"train/loss" in stored
    assert b"0.25" in stored
    for secret in ("hunter2", KEY, "tokenvalue123", "value-of-some", "printed-secret"):
        assert secret.encode() not in stored
    run = read_offline_run(tmp_path / "run")
    assert "environment" not in run.kinds
    assert run.config["address"] == "db://[redacted]@h"


def test_wandb_is_imported_only_when_a_run_starts() -> None:
    code = (
        "import sys, stablelightning, stablelightning.report.wandb as w; w.RunLogger();"
        "assert 'wandb' not in sys.modules, 'imported too early'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
