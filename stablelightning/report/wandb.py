"""The W&B run of a training: never in the way of it, and without secrets.

This is the only file that touches wandb's objects; wandb itself is imported when the run starts.
"""

import io
import os
import shlex
import shutil
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from stablelightning.errors import StableLightningWarning
from stablelightning.optional import require
from stablelightning.report.mode import Mode, check_arguments, wanted_mode
from stablelightning.report.reach import answers, has_netrc_entry
from stablelightning.report.redact import redact_secrets
from stablelightning.words import reason_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Loggers = Logger | Iterable[Logger] | None  # ``trainer.loggers``, one logger, or none

# Of ``patience``, this much is kept for starting offline after all (wandb's service takes about a
# second to start), and the question whether the server answers takes at most its share of the rest.
_OFFLINE_START_SECONDS = 3.0
_ANSWER_SHARE = 0.4
_SHORTEST_WAIT_SECONDS = 0.5

# A network that went away during training must not hold the process at its end.
_FINISH_SECONDS = 300.0

# What wandb records by itself and a run must not hold. A version of wandb that does not know a
# setting does not collect what it turns off, or has ``x_disable_meta`` for it.
_PRIVATE: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "finish_timeout": _FINISH_SECONDS,
    "host": "",
    "label_disable": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}

_SMALLEST_RANGE = 1e-12  # a constant image is black, not a division by zero


class RunLogger(WandbLogger):
    """Lightning's W&B logger, which no missing key and no missing network can stop.

    Without an API key it logs offline at once and never asks for one. With a key, it asks whether
    the configured server answers and, if it does not, or if the server refuses the key, starts
    offline within ``patience``. One line on stderr says where the run lies and how to sync it. The
    run starts on rank 0 only, when the Trainer starts (or on first use of ``experiment``).

    What wandb would record by itself is off: the command line, program path, host and user name,
    git remote, installed packages, and what the program prints. Settings that look like secrets
    are redacted (:func:`stablelightning.report.redact.redact_secrets`). W&B's error reports are off
    unless ``WANDB_ERROR_REPORTING`` says otherwise: they carry stack traces, and hold a process
    without network for ten seconds at its end.

    Args:
        project: name of the W&B project; ``None`` takes ``WANDB_PROJECT``, else "stablelightning".
        name: name of the run; ``None`` lets W&B choose.
        save_dir: folder in which wandb makes its own folder ``wandb/``.
        mode: ``"auto"`` and ``"online"`` sync where a key and a network are, ``"offline"`` only
            writes to ``save_dir``, ``"disabled"`` logs nothing. ``WANDB_MODE`` in the environment
            takes precedence over all four.
        patience: seconds after which training goes on offline at the latest; > 0.
        options: further arguments of Lightning's ``WandbLogger`` or of ``wandb.init``, such as
            ``{"entity": "my-team", "tags": ["first"], "log_model": True}``.

    Raises:
        RecipeError: an argument is out of its range, or ``WANDB_MODE`` is not one of wandb's.

    Example:
        In a recipe::

            trainer:
              logger:
                class_path: stablelightning.report.wandb.RunLogger
                init_args: {project: digits, mode: offline}

        >>> RunLogger("digits", mode="offline").name
        'digits'
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        mode: Mode = "auto",
        patience: float = 10.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        check_arguments(mode, patience, options)
        redacted = redact_secrets(options or {})
        project = project or os.environ.get("WANDB_PROJECT") or "stablelightning"
        super().__init__(name=name, save_dir=os.fspath(save_dir), project=project, **redacted)
        self._mode = wanted_mode(mode)
        self._patience = patience
        self._location: str | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``; starts it on first use, on rank 0. Elsewhere a stand-in."""
        import wandb

        # A run that the user started, or one handed over to a spawned process, is Lightning's case.
        attaching = getattr(self, "_attach_id", None) is not None
        if self._experiment is None and wandb.run is None and not attaching:
            self._experiment = self._start()
        return super().experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Store hyperparameters, secrets redacted."""
        plain = vars(params) if isinstance(params, Namespace) else dict(params)
        super().log_hyperparams(redact_secrets(plain))

    @property
    def location(self) -> str | None:
        """One line: where the run lies and how to sync it; ``None`` before it starts."""
        return self._location

    @rank_zero_only
    def finish(self, *, failed: bool = False) -> None:
        """End the run; what is logged after it starts a new one.

        wandb's service writes the last of the file a moment later, at the end of the process at the
        latest.
        """
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None

    def _start(self) -> Any:
        began = time.monotonic()
        # wandb reads this when it sets itself up, so it must stand before the first call.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        with suppress(OSError):  # wandb then takes the temporary folder, in words
            Path(str(self._save_dir)).mkdir(parents=True, exist_ok=True)
        run, reason = None, f"mode is {self._mode}"
        try:
            if self._mode in ("auto", "online", "shared"):
                run, reason = self._start_online(began)
            if run is None:
                run = self._begin("disabled" if self._mode == "disabled" else "offline")
        except Exception as error:
            # wandb without its service, or settings that it cannot read: log nothing, and train.
            warnings.warn(
                f"wandb must be able to start, and it failed ({_first_line(error)}); the run goes "
                "on without W&B. Mend this, or set mode to disabled.",
                StableLightningWarning,
                stacklevel=2,
            )
            return _NoRun()
        self._location = _location(run, reason)
        if self._location:
            print(self._location, file=sys.stderr, flush=True)
        return run

    def _start_online(self, began: float) -> tuple[Any, str]:
        """Return the run, or ``None`` and why there is none."""
        import wandb

        settings = wandb.setup().settings
        url = str(settings.base_url)
        if not (
            settings.api_key
            or getattr(settings, "identity_token_file", None)
            or has_netrc_entry(url)
        ):
            return None, "no API key was found"
        wait = (self._patience - _OFFLINE_START_SECONDS) * _ANSWER_SHARE
        proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
        if not answers(url, timeout=max(wait, _SHORTEST_WAIT_SECONDS), proxies=proxies):
            return None, f"{redact_secrets(url)} did not answer"
        left = self._patience - _OFFLINE_START_SECONDS - (time.monotonic() - began)
        older = _run_folders(self._save_dir)
        try:
            mode = "shared" if self._mode == "shared" else "online"
            return self._begin(mode, init_timeout=max(left, _SHORTEST_WAIT_SECONDS)), "online"
        except Exception as error:
            # The attempt left a run folder with nothing in it, which must not be taken for the run.
            for folder in _run_folders(self._save_dir) - older:
                shutil.rmtree(folder, ignore_errors=True)
            return None, f"the server did not start a run ({_first_line(error)})"

    def _begin(self, mode: Any, **timeouts: float) -> Any:
        import wandb

        arguments = {key: value for key, value in self._wandb_init.items() if value is not None}
        if mode != "online":
            arguments.pop("resume", None)  # means nothing there, and wandb says so every time
        known = wandb.Settings.model_fields
        settings = {**_PRIVATE, **timeouts, "silent": mode == "offline", "quiet": True}
        settings = {key: value for key, value in settings.items() if key in known}
        run = wandb.init(**arguments, mode=mode, settings=wandb.Settings(**settings))
        # As Lightning does for the runs that it starts: the Trainer's step is the axis.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run


class _NoRun(_DummyExperiment):
    """What stands in for a run where wandb cannot start: takes everything, keeps nothing."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.id = self.name = self.url = None


def _run_folders(save_dir: str | None) -> set[Path]:
    folders = (Path(str(save_dir)) / name for name in ("wandb", ".wandb"))
    return {run for folder in folders for run in folder.glob("run-*") if run.is_dir()}


def _location(run: Any, reason: str) -> str | None:
    settings = run.settings
    if settings.mode == "disabled":
        return None
    if settings.mode in ("offline", "dryrun"):
        folder = shlex.quote(settings.sync_dir)
        where = f"The run lies in {folder}; sync it with: wandb sync {folder}"
        return f"W&B is offline: {reason}. {where}"
    return f"W&B is online: {run.url}. A copy of the run lies in {settings.sync_dir}"


def _first_line(error: Exception) -> str:
    return str(redact_secrets(reason_of(error)))


def log_figure(loggers: Loggers, name: str, figure: "Figure") -> bool:
    """Store a figure with every logger that can hold one (W&B, TensorBoard), on rank 0.

    Args:
        loggers: ``trainer.loggers``, one logger, or ``None``.
        name: ``concern/quantity``.
        figure: as the functions of :mod:`stablelightning.report.plots` return it.

    Returns:
        Whether a logger took it; what cannot take it is named once, at level INFO.

    Example:
        >>> log_figure(None, "uncertainty/reliability", figure=None)
        False
    """
    runs = _wandb_runs(loggers, "figures", others="add_figure")
    for run in runs:
        if hasattr(run, "add_figure"):
            run.add_figure(name, figure)
        else:
            run.log({name: _image(figure)})
    return bool(runs)


def log_table(
    loggers: Loggers, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> bool:
    """Store a table with every W&B logger, on rank 0.

    Args:
        loggers: ``trainer.loggers``, one logger, or ``None``.
        name: ``concern/quantity``.
        columns: column names.
        rows: cells of each row: numbers, strings, ``None``, tensors of one element, or images as
            arrays ``(H, W)`` or ``(H, W, 3)``, of any range.

    Returns:
        Whether a logger took it; what cannot take it is named once, at level INFO.
    """
    runs = _wandb_runs(loggers, "tables")
    if runs:
        import wandb

        cells = [[_cell(value) for value in row] for row in rows]
        for run in runs:
            table = wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)
            run.log({name: table})
    return bool(runs)


def log_config(loggers: Loggers, config: Mapping[str, Any]) -> bool:
    """Store the resolved recipe with every W&B logger, on rank 0, secrets redacted.

    Args:
        loggers: ``trainer.loggers``, one logger, or ``None``.
        config: nested dictionaries of plain values.

    Returns:
        Whether a logger took it; what cannot take it is named once, at level INFO.
    """
    runs = _wandb_runs(loggers, "recipes")
    for run in runs:
        run.config.update(redact_secrets(config), allow_val_change=True)
    return bool(runs)


def log_summary(loggers: Loggers, summary: Mapping[str, float | None]) -> bool:
    """Store the numbers of ``summary.json`` with every logger, on rank 0; ``None`` is left out.

    Args:
        loggers: ``trainer.loggers``, one logger, or ``None``.
        summary: what :func:`stablelightning.report.summary.build_summary` gives.

    Returns:
        Whether there was a logger to take it.
    """
    numbers = {key: value for key, value in summary.items() if value is not None}
    takers = _on_rank_zero(loggers)
    for logger in takers:
        logger.log_metrics(numbers)
        logger.save()
    return bool(takers)


def finish_run(loggers: Loggers, *, failed: bool = False) -> None:
    """End the W&B run, so that what is logged after it does not belong to it.

    Args:
        loggers: ``trainer.loggers``, one logger, or ``None``.
        failed: mark the run as failed.
    """
    for logger in _each(loggers):
        if isinstance(logger, RunLogger):
            logger.finish(failed=failed)


def _each(loggers: Loggers) -> list[Logger]:
    if loggers is None:
        return []
    return [loggers] if isinstance(loggers, Logger) else list(loggers)


def _on_rank_zero(loggers: Loggers) -> list[Logger]:
    return _each(loggers) if getattr(rank_zero_only, "rank", 0) in (0, None) else []


def _wandb_runs(loggers: Loggers, what: str, *, others: str = "") -> list[Any]:
    """Experiments of W&B loggers, and of such others as have a method of that name."""
    runs = []
    for logger in _on_rank_zero(loggers):
        if isinstance(logger, WandbLogger):
            runs.append(logger.experiment)  # an AttributeError in there is to be seen
        elif others and hasattr(experiment := getattr(logger, "experiment", None), others):
            runs.append(experiment)
        else:
            _say_once(type(logger).__name__, what)
    return runs


@cache
def _say_once(kind: str, what: str) -> None:
    rank_zero_info(f"{kind} holds no {what}; a WandbLogger would.")


def _image(figure: "Figure") -> Any:
    import wandb

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return wandb.Image(require("PIL.Image", extra="recipes").open(buffer))


def _cell(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if getattr(value, "ndim", 0) >= 2:
        import wandb

        low, high = float(value.min()), float(value.max())
        scaled = (value - low) / max(high - low, _SMALLEST_RANGE) * 255
        return wandb.Image(require("PIL.Image", extra="recipes").fromarray(scaled.astype("uint8")))
    return value.item() if hasattr(value, "item") else value
