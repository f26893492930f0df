"""The W&B run of a training: never in the way of it, and without secrets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["auto", "online", "offline", "disabled"]
Loggers = Logger | Iterable[Logger] | None  # ``trainer.logger`` or ``trainer.loggers``


class RunLogger(WandbLogger):
    """Lightning's W&B logger that no missing key and no missing network can stop.

    In YAML: ``class_path: stablelightning.report.wandb.RunLogger``.
    """

    def __init__(
        self,
        project: str = "stablelightning",
        *,
        name: str | None = None,
        save_dir: str = ".",
        mode: Mode = "auto",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        version: str | None = None,
        log_model: Literal["all"] | bool = False,
        patience: float = 10.0,
    ) -> None:
        super().__init__(name=name, save_dir=save_dir, project=project, version=version)


def log_figure(loggers: Loggers, name: str, figure: "Figure") -> bool:
    """Store a figure with every logger that can hold one; True where one did."""
    raise NotImplementedError


def log_table(
    loggers: Loggers, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> bool:
    """Store a table with every W&B logger; True where one did."""
    raise NotImplementedError


def log_config(loggers: Loggers, config: Mapping[str, Any]) -> bool:
    """Store the resolved recipe, secrets redacted."""
    raise NotImplementedError


def log_summary(loggers: Loggers, summary: Mapping[str, float | None]) -> bool:
    """Store the numbers of ``summary.json``."""
    raise NotImplementedError


def describe_run(loggers: Loggers) -> str | None:
    """One line: where the W&B run lies and how to sync it; None where there is none."""
    raise NotImplementedError


def finish_run(loggers: Loggers) -> None:
    """End the W&B run, so that its file is complete and its service process ends."""
    raise NotImplementedError
