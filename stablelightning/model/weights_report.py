"""What became of each key of a weights file, to be read by a person."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stablelightning.words import some

#: Keys that one line names of each kind.
_NAMED = 2


class Reshaped(NamedTuple):
    """A key whose shape, or kind of number, differs between file and model; it is not loaded.

    Example:
        >>> Reshaped("fc.weight", "1000 x 512", "3 x 512").name
        'fc.weight'
    """

    name: str
    in_file: str
    in_model: str


@dataclass(frozen=True)
class LoadReport:
    """What became of a weights file.

    Args:
        path: of the file.
        model: class of the network.
        loaded: names in the model that have their values from the file.
        missing: names in the model that the file does not have.
        unexpected: names in the file that the model does not have.
        reshaped: names in both, whose shapes differ.
        share: of the model's values below its head, how many were loaded, in [0, 1].
        prefix: what was taken off the names in the file.
        head: names of the model's head, whose own size is the usual case.
        notes: what else was done, in words.

    Example:
        >>> report = LoadReport("a.pt", "Net", ("w",), (), (), (), share=1.0)
        >>> print(report)
        a.pt fits 100% of Net below its head
    """

    path: str
    model: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    share: float
    prefix: str = ""
    head: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether everything below the head came out of the file, and the file has no more."""
        beside = {*self.missing, *(r.name for r in self.reshaped), *self.unexpected}
        return beside <= set(self.head)

    def summary(self) -> str:
        """One line: the share, and the first keys below the head that found no place."""
        reshaped = [r for r in self.reshaped if r.name not in self.head]
        kinds = {
            "missing": [key for key in self.missing if key not in self.head],
            "unexpected": [key for key in self.unexpected if key not in self.head],
            "of another shape": [f"{n} ({a}, not {b})" for n, a, b in reshaped],
        }
        told = [f"{kind}: {some(keys, _NAMED)}" for kind, keys in kinds.items() if keys]
        if {*self.missing, *(r.name for r in self.reshaped)} & set(self.head):
            told.append("the head keeps its own weights")
        return f"{self._fits()} ({'; '.join(told)})" if told else self._fits()

    def __str__(self) -> str:
        lines = [self._fits()]
        lines += [f"  {note}" for note in self.notes]
        for kind, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines += [f"  {kind}: {key}{self._told(key)}" for key in keys]
        for name, in_file, in_model in self.reshaped:
            shapes = f"{in_file} in the file, {in_model} in the model"
            lines.append(f"  of another shape: {name}: {shapes}{self._told(name)}")
        return "\n".join(lines)

    def _fits(self) -> str:
        percent = int(100 * self.share)  # rounded down: what misses one value does not fit whole
        return f"{Path(self.path).name} fits {percent}% of {self.model} below its head"

    def _told(self, key: str) -> str:
        return " (head)" if key in self.head else ""
