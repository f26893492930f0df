"""What a run leaves: numbers, predictions, plots, a table in the terminal, and the same in W&B."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from stablelightning.cli.decide import decided_on
from stablelightning.cli.figures import Seen, figures_of, images_of
from stablelightning.cli.sections import run_sections
from stablelightning.optional import require
from stablelightning.report import plots
from stablelightning.report.section import print_section, sentence
from stablelightning.report.summary import (
    build_summary,
    most_uncertain_rows,
    ood_auroc,
    write_predictions,
    write_summary,
)
from stablelightning.report.table import print_summary
from stablelightning.report.wandb import log_figure, log_summary, log_table

if TYPE_CHECKING:
    from stablelightning.cli.observe import ObserveUnknown

Rows = dict[str, Tensor]

#: What is needed at the end of a run, and so looked for at its beginning.
_NEEDED = ("matplotlib", "pyarrow", "rich")
_EXAMPLES = 50  #: rows of the W&B table


def require_what_is_needed() -> None:
    """Find out before training whether the results can be written after it.

    Raises:
        MissingPackageError: a package of the extra ``recipes`` is missing.
    """
    for name in _NEEDED:
        require(name, extra="recipes")


def leave_results(
    trainer: L.Trainer, folder: Path, *, unknown: "ObserveUnknown | None", seconds: float
) -> None:
    """Write and show the results of a tested model; for process 0.

    Args:
        trainer: after ``test``.
        folder: the folder of the run.
        unknown: what was seen of the out-of-distribution sets and, through its ``estimate``, of the
            test set; ``None`` where uncertainty was not estimated.
        seconds: how long the run took, until now.
    """
    data = getattr(trainer, "datamodule", None)
    rows = with_dataset_rows(unknown.estimate.rows, data) if unknown else {}
    sections, left_out = run_sections(trainer, trainer.lightning_module)
    summary = build_summary(
        trainer.callback_metrics,
        unknown.estimate.results if unknown else {},
        ood_auroc(rows, unknown.rows) if unknown and rows else {},
        *[section.numbers for section in sections],
        {"run/epochs": trainer.current_epoch, "run/seconds": seconds},
    )
    write_summary(folder, summary)
    log_summary(trainer.loggers, summary)
    if unknown and rows:
        write_predictions(folder, rows, **names_of(rows, data, "test_files"))
        level = unknown.estimate.results.get("uncertainty/level")
        seen = Seen(rows, unknown.rows, data, level=level, thresholds=decided_on(trainer))
        for name, figure in figures_of(seen):
            if isinstance(figure, str):
                left_out.append(figure)
                continue
            plots.save_figure(figure, folder / "plots" / f"{name}.png")
            log_figure(trainer.loggers, f"uncertainty/{name}", figure)
        _log_examples(trainer, rows)
    for section in sections:
        if section.figure is not None:
            plots.save_figure(section.figure, folder / "plots" / f"{section.name}.png")
            log_figure(trainer.loggers, f"report/{section.name}", section.figure)
        if section.rows:
            log_table(
                trainer.loggers, f"report/{section.name}_table", section.columns, section.rows
            )
    print()
    print_summary(summary, title=folder.name)
    for section in sections:
        print()
        print_section(section)
    for note in left_out:
        print(f"Note: {sentence(note)}")
    print(f"Results: {folder}", flush=True)


def with_dataset_rows(rows: Rows, data: Any) -> Rows:
    """Say beside the index, which counts the test examples, which row of the data each one is.

    Args:
        rows: ``EstimateUncertainty.rows``, or what was predicted of the test set.
        data: a data module; one with ``test_rows`` knows.
    """
    places = getattr(data, "test_rows", None)
    if not rows or not isinstance(places, Tensor) or len(places) <= int(rows["index"].max()):
        return rows
    return {"index": rows["index"], "row": places[rows["index"]], **rows}


def names_of(rows: Rows, data: Any, files: str) -> dict[str, Any]:
    """What the data can say in words of the rows: the file of each, the name of each class.

    Args:
        rows: with their ``index`` and ``mean``.
        data: a data module; one that reads files knows theirs.
        files: the attribute that holds them, by index: ``"test_files"`` or ``"predict_files"``.

    Returns:
        ``files`` and ``class_names`` for :func:`~stablelightning.report.summary.write_predictions`;
        ``None`` for what is not known, or is of another length.
    """
    paths, names = getattr(data, files, None), getattr(data, "class_names", None)
    if paths is not None and len(paths) <= int(rows["index"].max()):
        paths = None
    if names is not None and (rows["mean"].ndim != 2 or len(names) != rows["mean"].shape[1]):
        names = None
    return {"files": paths, "class_names": names}


def _log_examples(trainer: L.Trainer, rows: Rows) -> None:
    data = getattr(trainer, "datamodule", None)
    names = getattr(data, "class_names", None)
    columns, examples = most_uncertain_rows(rows, count=_EXAMPLES, class_names=names)
    place = columns.index("index")
    images = images_of(data, torch.tensor([example[place] for example in examples]))
    if images is not None:
        columns = [*columns, "image"]
        shown = [image.movedim(0, -1) if len(image) == 3 else image[0] for image in images]
        examples = [[*example, image] for example, image in zip(examples, shown, strict=True)]
    log_table(trainer.loggers, "uncertainty/most_uncertain_examples", columns, examples)
