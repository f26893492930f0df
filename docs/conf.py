"""Sphinx configuration; the figures are drawn by the build, from scripts in ``figures/``."""

import importlib
import sys
import time
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

import stablelightning

HERE = Path(__file__).parent
#: The look of every figure, as far as its script does not say otherwise: no box, faint lines.
LOOK = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#6E6E6E",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": "#262626",
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "grid.alpha": 0.7,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
GENERATED = HERE / "_generated"

project = "stablelightning"
author = "The stablelightning authors"
copyright = "the stablelightning authors, Apache-2.0"
version = release = stablelightning.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_generated", "figures", "images"]
html_theme = "furo"
html_title = f"stablelightning {version}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute that is also a property is described once
napoleon_custom_sections = ["Source"]


def draw_figures(_app: Sphinx) -> None:
    """Draw every figure; one that fails, fails the build."""
    import matplotlib

    matplotlib.use("Agg")
    sys.path.insert(0, str(HERE / "figures"))
    GENERATED.mkdir(exist_ok=True)
    log = logging.getLogger(__name__)
    for script in sorted((HERE / "figures").glob("[!_]*.py")):
        started = time.perf_counter()
        with matplotlib.rc_context(LOOK):
            figure = importlib.import_module(script.stem).draw()
            figure.savefig(GENERATED / f"{script.stem}.png", dpi=150, facecolor="white")
        log.info("figure %s: %.1f s", script.stem, time.perf_counter() - started)


def setup(app: Sphinx) -> None:
    """Draw before any page is read."""
    app.connect("builder-inited", draw_figures)
