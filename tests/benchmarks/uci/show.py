"""The table in words, against the published rows."""

import math
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from stablelightning.report.style import BAND_ALPHA, COLOURS, INK, MUTED, new_figure, say, tidy
from tests.benchmarks.uci.columns import HEADLINE, Column
from tests.benchmarks.uci.tuning import Choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Published rows: RMSE and log-likelihood, each with its standard error over 20 splits; the
#: authors' repository as updated in 2018, after Gal, Ghahramani 2016, arXiv:1506.02142.
PUBLISHED = {
    "concrete": ((4.8265, 0.161), (-2.9367, 0.025)),
    "energy": ((0.5389, 0.014), (-1.2115, 0.005)),
    "kin8nm": ((0.0789, 0.0006), (1.1364, 0.007)),
    "wine-quality-red": ((0.6218, 0.008), (-0.9281, 0.013)),
    "yacht": ((0.6663, 0.049), (-1.2501, 0.015)),
}
#: What the headline's log-likelihood is to reach.
WANTED = {
    "concrete": -2.85,
    "energy": -0.80,
    "kin8nm": 1.19,
    "wine-quality-red": -0.90,
    "yacht": -0.75,
}

#: Student's t for 95 % of twenty splits.
_STUDENT_20 = 2.093


def centre(values: list[float]) -> tuple[float, float]:
    """Mean over the splits and its standard error; no error of one split."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean(values), error


def line(name: str, column: Column) -> str:
    (rmse, rmse_error), (fit, fit_error) = centre(column.rmse), centre(column.log_likelihood)
    return (
        f"{name:20} RMSE {rmse:.4f} ({rmse_error:.4f})   log-likelihood {fit:.4f} "
        f"({fit_error:.4f})   {column.seconds:.0f} s"
    )


def setting(choice: Choice) -> str:
    """What was chosen, in few words."""
    chosen = choice.candidate
    parts = [chosen.activation]
    parts += [f"dropout {chosen.rate:g}"] if chosen.rate else []
    parts += [f"decay {chosen.decay:g}"] if chosen.decay else []
    parts += [f"{chosen.together} masks together"] if chosen.together > 1 else []
    parts += [f"{chosen.length} x the steps"] if chosen.length > 1 else []
    parts += [] if chosen.heteroscedastic else [f"precision {1 / choice.scale:g}"]
    return ", ".join(parts)


def verdict(result: dict[str, Any]) -> str:
    """The bounds of a published set, met or missed; nothing of another one."""
    return "\n".join(f"{name}: {'met' if met else 'missed'}" for name, met in bounds(result))


def bounds(result: dict[str, Any]) -> list[tuple[str, bool]]:
    """What was asked of the columns that were run."""
    published = PUBLISHED.get(result["dataset"])
    found = []
    fit = mean(result["log_likelihood"])
    if published:
        (rmse, rmse_error), (_, _) = published
        wanted = WANTED[result["dataset"]]
        found.append((f"log-likelihood at least {wanted}", fit >= wanted))
        most = rmse + rmse_error
        found.append((f"RMSE at most {most:.4f}", mean(result["rmse"]) <= most))
    if plain := result.get("heteroscedastic"):
        found.append(
            ("log-likelihood not below that without dropout", fit >= mean(plain["log_likelihood"]))
        )
    if published and (repeated := result.get("homoscedastic_mc")):
        for what, (value, error) in zip(("rmse", "log_likelihood"), published, strict=True):
            ours, own_error = centre(repeated[what])
            near = abs(ours - value) <= 2 * math.hypot(error, own_error)
            found.append((f"homoscedastic {what} within two standard errors of {value}", near))
    return found


#: Columns in the order of the table, with the words of its head.
TITLES = {
    "homoscedastic_mc": "homoscedastic MC",
    "heteroscedastic": "heteroscedastic",
    "heteroscedastic_mc": "heteroscedastic MC",
    "mc_ensemble": "ensemble of MC",
}


#: Stands where a column was not run.
_MISSING = "not run"


def columns_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The columns of a run in the order of the table, the headline among them."""
    everything = {HEADLINE: result, **result}
    return {name: everything[name] for name in TITLES if name in everything}


def table(results: list[dict[str, Any]], what: str) -> str:
    """Rows of a table in Markdown: means over the splits with their standard errors.

    Args:
        results: of the sets.
        what: ``"rmse"`` or ``"log_likelihood"``.
    """
    rows = [f"| set | published | {' | '.join(TITLES.values())} |", "|---" * 6 + "|"]
    for result in results:
        published = PUBLISHED[result["dataset"]][what == "log_likelihood"]
        columns = columns_of(result)
        told = ["{:.4f} ({:.4f})".format(*published)]
        for name in TITLES:
            known = name in columns
            told.append(
                "{:.4f} ({:.4f})".format(*centre(columns[name][what])) if known else _MISSING
            )
        rows.append(f"| {result['dataset']} | {' | '.join(told)} |")
    return "\n".join(rows)


def gains(results: list[dict[str, Any]], what: str) -> str:
    """Rows of the headline less every other column, paired by split, with 95 % intervals."""
    others = [name for name in TITLES if name != HEADLINE]
    head = " | ".join(f"against {TITLES[name]}" for name in others)
    rows = [f"| set | {head} |", "|---" * 4 + "|"]
    for result in results:
        told = []
        for name in others:
            if name not in result:
                told.append(_MISSING)
                continue
            pairs = zip(result[what], result[name][what], strict=True)
            value, error = centre([ours - other for ours, other in pairs])
            half = _STUDENT_20 * error
            told.append(f"{value:+.4f} [{value - half:+.4f}, {value + half:+.4f}]")
        rows.append(f"| {result['dataset']} | {' | '.join(told)} |")
    return "\n".join(rows)


def draw(results: list[dict[str, Any]]) -> "Figure":
    """A panel for each set: the log-likelihood of every split, and the published mean as a band."""
    figure = new_figure(7.6, 3.6)
    known = [r for r in results if r["dataset"] in PUBLISHED]
    better = sum(mean(r["log_likelihood"]) > PUBLISHED[r["dataset"]][1][0] for r in known)
    say(
        figure,
        "Log-likelihood of test rows, each split a dot, means as ticks: a variance for each row "
        f"and dropout lie above the published mean on {better} of {len(known)} sets",
    )
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    colours = dict(zip(TITLES, (MUTED, COLOURS[0], COLOURS[1], COLOURS[2]), strict=True))
    handles: dict[str, Any] = {}
    for axes, result in zip(panels, results, strict=True):
        for name, column in columns_of(result).items():
            place = list(TITLES).index(name)
            values = column["log_likelihood"]
            shifts = [place + 0.5 * (i / max(1, len(values) - 1) - 0.5) for i in range(len(values))]
            axes.plot(shifts, values, ".", color=colours[name], markersize=3.5, alpha=0.6)
            axes.hlines(mean(values), place - 0.35, place + 0.35, color=colours[name], linewidth=2)
            (handles[TITLES[name]],) = axes.plot([], [], "s", color=colours[name])
        if published := PUBLISHED.get(result["dataset"]):
            value, error = published[1]
            low, high = value - 2 * error, value + 2 * error
            band = axes.axhspan(low, high, color=INK, alpha=BAND_ALPHA, linewidth=0)
            handles["published"] = band
        axes.set_title(result["dataset"], loc="left", color=INK, fontsize=9)
        axes.set_xticks([])
        tidy(axes)
    panels[0].set_ylabel("nats per row")
    look = {"loc": "outside lower left", "ncols": 5, "frameon": False, "fontsize": 8.5}
    figure.legend(
        list(handles.values()), list(handles), handletextpad=0.2, columnspacing=1.2, **look
    )
    return figure
