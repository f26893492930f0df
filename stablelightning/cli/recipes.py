"""The shipped recipes: where they lie, what they are for, and which one was meant."""

import difflib
from importlib.resources import files
from pathlib import Path

from stablelightning.errors import RecipeError

START = "start"  #: complete recipes
ADD = "add"  #: overlays that stack on any complete recipe


def shipped(kind: str) -> dict[str, Path]:
    """The shipped recipes of one kind, ``START`` or ``ADD``, by name.

    They lie inside the package when it was installed from a wheel, and beside it in a clone.

    Raises:
        RecipeError: neither folder is there (the package was taken apart).

    Example:
        >>> {"multi_gpu", "online_wandb"} <= set(shipped(ADD))
        True
    """
    package = Path(str(files("stablelightning")))
    for folder in (package / "recipes" / kind, package.parent / "recipes" / kind):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise RecipeError(
        f"the recipes must lie in {package / 'recipes'}, and they do not; "
        "install stablelightning again, or give the path of a recipe of your own."
    )


def describe(path: Path) -> str:
    """The first comment line of a recipe, which says what it is for."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
        if line.strip():
            break
    return ""


def find(name: str, kind: str) -> Path:
    """The recipe that is meant by a shipped name or by the path of a YAML file.

    Args:
        name: a name of :func:`shipped`, or a path.
        kind: ``START`` or ``ADD``.

    Raises:
        RecipeError: there is no such recipe; the message names the nearest one.

    Example:
        >>> find("digits", START).name
        'digits.yaml'
    """
    known = shipped(kind)
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    what = "recipe" if kind == START else "overlay"
    if path.suffix in {".yaml", ".yml"}:
        raise RecipeError(f"{what} must be a file that exists, got {name!r}; check the path.")
    raise RecipeError(
        f"{what} must be one of {', '.join(known)} or the path of a YAML file, got {name!r}"
        f"{did_you_mean(name, list(known)) or '.'}"
    )


def did_you_mean(name: str, known: list[str]) -> str:
    """The end of an error that names the nearest name, or nothing where no name is near.

    Example:
        >>> did_you_mean("digit", ["digits", "diabetes"])
        "; did you mean 'digits'?"
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing() -> str:
    """What ``stablelightning run --list`` prints."""
    lines = []
    for kind, title in ((START, "Complete recipes"), (ADD, "Overlays, for --add")):
        known = shipped(kind)
        width = max((len(name) for name in known), default=0)
        lines.append(f"{title}:")
        lines += [f"  {name:<{width}}  {describe(path)}" for name, path in known.items()]
        lines.append("")
    return "\n".join(lines).rstrip()
