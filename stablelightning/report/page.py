"""The page of a diagnosis as one HTML file, and the three files that the doctor leaves."""

import json
import math
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stablelightning.files import written_whole
from stablelightning.optional import require
from stablelightning.report.depth import DEPTH_HEIGHT, DEPTH_WIDTH, depth_sentence, draw_depth
from stablelightning.report.depth import SEVERITIES as SEVERITY_COLOURS
from stablelightning.report.diagnosis import (
    cured_findings,
    diagnosis_figure,
    layer_rows,
    short_number,
    summary_line,
)
from stablelightning.report.section import Section, sentence, svg
from stablelightning.report.style import COLOURS, DPI, FAINT, INK, MUTED, new_figure

if TYPE_CHECKING:
    from stablelightning.model.diagnosis import Diagnosis

_TEMPLATE = "diagnosis.html.jinja"


def diagnosis_page(
    diagnosis: "Diagnosis", *, title: str = "Before training", sections: Sequence[Section] = ()
) -> str:
    """Make a page of the depth plot, what was done, the findings and every layer's numbers.

    Args:
        diagnosis: with its ``before`` where cures were applied; what these cured is listed too.
        title: of the page.
        sections: of other concerns, below the findings.

    Returns:
        HTML that needs no other file and no network: the plot is inside as SVG. Names of modules
        and messages are escaped.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.

    Example:
        >>> import torch
        >>> import stablelightning as sl
        >>> page = diagnosis_page(sl.diagnose(torch.nn.Linear(4, 2), torch.randn(16, 4)))
        >>> page.count("<svg"), "http-equiv" in page
        (1, False)
    """
    jinja2 = require("jinja2", extra="recipes")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(sentence=sentence, number=_cell)
    source = files("stablelightning.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    columns, rows = layer_rows(diagnosis)
    html: str = environment.from_string(source).render(
        title=title,
        lead=depth_sentence(diagnosis) if diagnosis.layers else summary_line(diagnosis),
        chips=_chips(diagnosis),
        plot=_svg(diagnosis) if diagnosis.layers else None,
        treatments=diagnosis.treatments,
        groups=_groups(diagnosis),
        sections=[(part, svg(part.figure) if part.figure else None) for part in sections],
        notes=diagnosis.notes,
        columns=columns,
        rows=rows,
        severities=SEVERITY_COLOURS,
        ink=INK,
        muted=MUTED,
        faint=FAINT,
        green=COLOURS[2],
    )
    return html


def write_diagnosis(
    diagnosis: "Diagnosis",
    folder: str | os.PathLike[str],
    *,
    title: str = "Before training",
    name: str = "doctor",
    sections: Sequence[Section] = (),
) -> list[Path]:
    """Write the page as ``doctor.html``, ``doctor.png`` and ``doctor.json``, each whole.

    Args:
        diagnosis: as for :func:`diagnosis_page`.
        folder: made if it is missing; files of these names are replaced.
        title: of the page.
        name: of the files.
        sections: of other concerns, on the page and in the JSON file.

    Returns:
        The paths; without the figure where the diagnosis has no layers.

    Raises:
        OutputError: the folder cannot be written.
        MissingPackageError: jinja2 or matplotlib is not installed.

    Example:
        >>> import tempfile, torch
        >>> import stablelightning as sl
        >>> diagnosis = sl.diagnose(torch.nn.Linear(4, 2), torch.randn(16, 4))
        >>> sorted(path.name for path in write_diagnosis(diagnosis, tempfile.mkdtemp()))
        ['doctor.html', 'doctor.json', 'doctor.png']
    """
    folder = Path(folder)
    # All is made before anything is written.
    page = diagnosis_page(diagnosis, title=title, sections=sections)
    figure = diagnosis_figure(diagnosis) if diagnosis.layers else None
    told = diagnosis.to_dict() | {"sections": [section.to_dict() for section in sections]}
    text = json.dumps(_finite(told), indent=2, allow_nan=False)
    written = [folder / f"{name}.html", folder / f"{name}.json"]
    for path, content in zip(written, (page, text), strict=True):
        with written_whole(path) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    if figure is not None:
        written.append(folder / f"{name}.png")
        with written_whole(written[-1]) as temporary:
            figure.savefig(temporary, dpi=DPI)
    return written


def _chips(diagnosis: "Diagnosis") -> list[tuple[str, str]]:
    chips = [(summary_line(diagnosis), ""), ("layers", str(len(diagnosis.layers)))]
    for slope, name in (
        (diagnosis.forward_slope, "signal per layer"),
        (-diagnosis.gradient_slope, "gradient per layer, on its way back"),
    ):
        if math.isfinite(slope):  # a slope over one layer or two is not known
            chips.append((name, f"x {math.exp(slope):.3g}"))
    return [*chips, ("of the gradients underflow", f"{100 * diagnosis.underflow:.2g} %")]


def _groups(diagnosis: "Diagnosis") -> list[tuple[str, Any, bool]]:
    """Headings, each with its findings and whether these still stand."""
    heading = "Findings" if diagnosis.before is None else "What is left"
    if not diagnosis.findings:
        heading = "No findings"
    groups: list[tuple[str, Any, bool]] = [(heading, diagnosis.findings, True)]
    if cured := cured_findings(diagnosis):
        groups.append(("Found before the cures, and gone", cured, False))
    return groups


def _svg(diagnosis: "Diagnosis") -> Any:
    """The depth plot without its sentence, which is the page's own; safe to put into HTML."""
    figure = new_figure(DEPTH_WIDTH, DEPTH_HEIGHT)
    draw_depth(figure, diagnosis)
    return svg(figure)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return short_number(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
