"""What stacking two configurations leaves: of a list the second, of named slots both."""

from _digits import BLUE, GREY, ORANGE
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure

_LISTS = ("callbacks: [Clip, Guard]", "callbacks: [Checkpoint]")
_SLOTS = ("stable:\n  clip: Clip\n  guard: Guard", "stable:\n  checkpoint: Checkpoint")


def merged(files: tuple[str, ...]) -> str:
    """What jsonargparse, LightningCLI's parser, makes of the files."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--callbacks", type=list[str])
    for name in ("clip", "guard", "checkpoint"):
        parser.add_argument(f"--stable.{name}", type=str | None)
    given = parser.parse_args([f"--config={text}" for text in files]).as_dict()
    if given["callbacks"]:
        return f"callbacks: [{', '.join(given['callbacks'])}]"
    kept = [f"  {name}: {value}" for name, value in given["stable"].items() if value]
    return "\n".join(["stable:", *kept])


def draw() -> Figure:
    """First file, second file, result: for lists above, for slots below."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    grid = figure.subplots(2, 3)
    for panel, title in zip(grid[0], ("recipe", "overlay", "what runs"), strict=True):
        panel.set_title(title, fontsize=10)
    for row, files, color in zip(grid, (_LISTS, _SLOTS), (ORANGE, BLUE), strict=True):
        for panel, text in zip(row, (*files, merged(files)), strict=True):
            last = panel is row[-1]
            panel.text(
                *(0.04, 0.5, text),
                family="monospace",
                fontsize=10,
                va="center",
                color=color if last else "black",
                weight="bold" if last else "normal",
            )
            panel.set(xticks=[], yticks=[])
            for spine in panel.spines.values():
                spine.set_color(color if last else GREY)
    return figure
