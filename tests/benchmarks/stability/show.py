"""Tables for the terminal, and the picture of the docs page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stablelightning.report.style import COLOURS, INK, MUTED, legend, new_figure, say, tidy
from tests.benchmarks.stability.judge import Verdict
from tests.benchmarks.stability.rows import COLUMNS, OURS
from tests.benchmarks.stability.theory import worst_gain_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT = (1, 50, 100, 200)


def show_training(verdicts: Sequence[Verdict], *, seeds: int) -> None:
    print(f"\nTest accuracy in percent: median (worst) of {seeds} paired seeds\n")
    print(f"{'row':32}" + "".join(f"{column:>16}" for column in COLUMNS) + "   bounds")
    for verdict in verdicts:
        cells = [
            f"{c.median:.1f} ({c.worst:.1f})" if (c := verdict.cells.get(column)) else "-"
            for column in COLUMNS
        ]
        line = f"{verdict.row:32}" + "".join(f"{cell:>16}" for cell in cells)
        print(f"{line}   {_told(verdict)}")
    print("\nWhat was done in our column (first seed)\n")
    for verdict in verdicts:
        notes = verdict.notes
        if not notes:
            continue
        drawn = ", ".join(f"{n} {kind}" for kind, n in notes["initialized"].items())
        print(f"{verdict.row} ({verdict.training})\n  initialized: {drawn}")
        for word in ("found", "applied", "left"):
            for entry in notes[word]:
                print(f"  {word}: {entry}")
        if verdict.differs:
            print("  (for another seed the doctor found something else)")


def _told(verdict: Verdict) -> str:
    missed = [f"{name}: missed by {-m:.2f}" for name, m in verdict.bounds.items() if m < 0]
    return "; ".join(missed) if missed else "met" if verdict.bounds else "not judged"


def show_gains(rows: list[dict[str, Any]]) -> None:
    print("\nGains against closed forms\n")
    print(f"{'function':18}{'forward':>14}{'error':>10}{'backward':>14}{'error':>10}")
    for row in rows:
        line = f"{row['function']:18}"
        for way in ("forward", "backward"):
            line += f"{row[way]:14.9f}{abs(row[way] - row[f'{way} exact']):10.1e}"
        print(line)
    print(f"largest error {worst_gain_error(rows):.1e} (bound 1e-6)")


def show_profiles(profiles: list[dict[str, Any]]) -> None:
    print("\nPre-activations of a 200-layer stack: measured (in theory)\n")
    print(f"{'':32}" + "".join(f"{f'layer {at}':>24}" for at in _AT))
    for profile in profiles:
        for quantity in ("variance", "cosine"):
            line = f"{profile['activation']} {profile['initialized']}, {quantity}"
            measured, theory = profile[quantity], profile[f"{quantity} in theory"]
            places = [at for at in _AT if at <= len(measured)]
            cells = [f"{measured[at - 1]:.3g} ({theory[at - 1]:.3g})" for at in places]
            print(f"{line:40}" + "".join(f"{cell:>22}" for cell in cells))


def show_window(window: dict[str, float]) -> None:
    print("\nThe sigmoid's window of explosion\n")
    for name, value in window.items():
        print(f"{name:30}{value:10.4f}")


def show_attribution(rows: list[dict[str, Any]]) -> None:
    right = sum(row["layers"] - len(row["wrong"]) for row in rows)
    total = sum(row["layers"] for row in rows)
    print(f"\nAttribution: {right} of {total} layers of {len(rows)} networks as written down\n")
    for row in rows:
        wrong = f"wrong: {', '.join(row['wrong'])}" if row["wrong"] else "all right"
        print(f"{row['network']:28}{row['layers']:5} layers, {wrong}")


def draw(verdicts: Sequence[Verdict], *, seeds: int) -> "Figure":
    """Every training as a dot, a row for each network, a colour for each column."""
    figure = new_figure(8.0, 0.52 * len(verdicts) + 1.6)
    say(
        figure,
        f"Test accuracy after training, each of {seeds} seeds a dot, medians as ticks: "
        "ours holds where depth makes the others fall",
    )
    axes = figure.subplots()
    colours = dict(zip(COLUMNS, (MUTED, *COLOURS[2:], COLOURS[1]), strict=True))
    step = 0.8 / len(COLUMNS)
    for place, column in enumerate(COLUMNS):
        shift = (place - (len(COLUMNS) - 1) / 2) * step
        label: str | None = column
        for number, verdict in enumerate(verdicts):
            cell = verdict.cells.get(column)
            if cell is None:
                continue
            heights = [number + shift] * len(cell.accuracies)
            size = 16 if column == OURS else 10
            axes.scatter(
                cell.accuracies, heights, s=size, color=colours[column], label=label, linewidths=0
            )
            axes.plot([cell.median] * 2, [heights[0] - step / 2, heights[0] + step / 2],
                      color=colours[column], linewidth=1.6)  # fmt: skip
            label = None
    axes.set_yticks(range(len(verdicts)), [v.row for v in verdicts], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 101)
    tidy(axes, x="test accuracy (%)", grid="x")
    legend(axes, columns=len(COLUMNS))
    return figure
