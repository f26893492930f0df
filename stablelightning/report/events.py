"""What a guard decided during a run: in memory, as lines of a file, and as a table in W&B."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from stablelightning.errors import StableLightningWarning
from stablelightning.report.wandb import log_table

#: One event: plain values under the names of :data:`COLUMNS`, and others.
Event = dict[str, Any]

#: What a row of the W&B table says of an event.
COLUMNS = (
    *("step", "epoch", "batch", "decision", "quantity", "value", "cause", "module", "message"),
    *("indices", "learning_rate"),
)

#: What a guard decides: the whole step is undone; one of its micro-batches is; the run goes back to
#: a snapshot; it ends.
SKIPPED, DROPPED, ROLLED_BACK, GAVE_UP = "skipped", "dropped", "rolled back", "gave up"

#: The file, in the run's folder.
FILE_NAME = "events.jsonl"

#: So many events are kept in memory and in checkpoints; older ones are in the file, and counted.
MOST_EVENTS = 1000

#: Readings of the loss that a picture has columns for.
_MOST_READINGS = 512

#: Events that a report in the terminal lists.
_LISTED = 8

#: What JSON has no number for.
_WORDS = {math.inf: "inf", -math.inf: "-inf"}


class EventLog:
    """Keeps every decision, and the loss beside it, thinned; writes as it goes.

    One line per event is appended to ``events.jsonl`` in the run's folder by process 0, whole, in
    JSON that any reader takes: what is not finite becomes ``"nan"``, ``"inf"`` or ``"-inf"``. A
    quiet run leaves no file. A folder that cannot be written is a warning, and training goes on.

    Attributes:
        events: the latest, oldest first, as plain dictionaries.
        counts: how many there were of each decision, all of them.
        steps: where the loss was kept.
        losses: what it was there; never NaN.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> log = EventLog()
        >>> log.write(trainer, {"step": 7, "decision": "skipped", "value": float("nan")})
        >>> log.counts["skipped"], log.events[0]["value"]
        (1, 'nan')
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.counts: Counter[str] = Counter()
        self.steps: list[int] = []
        self.losses: list[float] = []
        self._stride, self._offered = 1, 0
        self._can_write = True
        self._told = 0  # events that the table in W&B has

    def write(self, trainer: L.Trainer, event: Mapping[str, Any]) -> None:
        """Keep an event, and append it to the file. Every process may call this; the first writes.

        Args:
            trainer: of the run.
            event: what was decided. Known names, each optional: ``step`` (of the Trainer),
                ``epoch``, ``batch`` (in the epoch), ``decision`` (:data:`SKIPPED` and so on),
                ``quantity`` (``"loss"`` or ``"gradient"``) and its ``value``, ``cause``,
                ``module``, ``message``, ``indices`` of the batch's rows in the dataset,
                ``learning_rate``. Tensors of one element become numbers.
        """
        kept = {name: _plain(value) for name, value in event.items()}
        self.events.append(kept)
        self.counts[str(kept.get("decision", "event"))] += 1
        del self.events[:-MOST_EVENTS]
        if not trainer.is_global_zero or trainer.barebones:
            return
        self._append(run_folder(trainer), kept)
        number = self.counts.total()
        if number & (number - 1) == 0:  # 1, 2, 4, 8...: each time the whole table is sent
            self.tell(trainer)

    def keep_loss(self, step: int, loss: float) -> None:
        """Offer the loss of a step; the longer the run, the further apart are those kept."""
        self._offered += 1
        if (self._offered - 1) % self._stride or not math.isfinite(loss):
            return
        self.steps.append(step)
        self.losses.append(loss)
        if len(self.steps) > _MOST_READINGS:
            self.steps, self.losses = self.steps[::2], self.losses[::2]
            self._stride *= 2

    def tell(self, trainer: L.Trainer) -> None:
        """Send the table ``guard/events`` to W&B, if there are events that it has not got."""
        number = self.counts.total()
        if number == self._told or not trainer.is_global_zero:
            return
        self._told = number
        rows = [[_cell(event.get(name)) for name in COLUMNS] for event in self.events]
        log_table(trainer.loggers, "guard/events", COLUMNS, rows)

    def state_dict(self) -> dict[str, Any]:
        """Everything that was kept, as plain types."""
        return {
            "events": [dict(event) for event in self.events],
            "counts": dict(self.counts),
            "steps": list(self.steps),
            "losses": list(self.losses),
            "stride": self._stride,
            "offered": self._offered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.events = [dict(event) for event in state["events"]]
        self.counts = Counter(state["counts"])
        self.steps, self.losses = list(state["steps"]), list(state["losses"])
        self._stride, self._offered = state["stride"], state["offered"]
        self._told = 0

    def _append(self, folder: Path | None, event: Event) -> None:
        if folder is None or not self._can_write:
            return
        line = json.dumps({"time": _now(), **event}, allow_nan=False) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _append_whole(folder / FILE_NAME, line.encode())
        except OSError as error:
            self._can_write = False
            rank_zero_warn(
                f"{FILE_NAME} must be written to {folder}, and that failed "
                f"({error.strerror or error}); the run goes on without it.",
                category=StableLightningWarning,
            )


def run_folder(trainer: L.Trainer) -> Path | None:
    """Where a run leaves its files, asked of this process alone.

    Args:
        trainer: of the run.

    Returns:
        The folder of its first logger that has one, else the Trainer's ``default_root_dir``. In a
        ``stablelightning run`` that is the run's own. ``None`` where nothing shall be left
        (``fast_dev_run``, ``barebones``), or where it lies with a remote file system.

    Example:
        >>> run_folder(L.Trainer(accelerator="cpu", logger=False, default_root_dir="here"))
        PosixPath('here')
    """
    if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
        return None
    found: Any = None
    for logger in trainer.loggers:
        # As Trainer.log_dir, which is a collective call and would hang on one process.
        found = found or getattr(logger, "log_dir", None) or logger.save_dir
    folder = str(found or trainer.default_root_dir)
    return None if "://" in folder else Path(folder)


def report_of_giving_up(events: Sequence[Event]) -> str:
    """Say in words what led to giving up, what it was, and what to do; for an error's message.

    Args:
        events: as :class:`EventLog` keeps them.

    Returns:
        Several lines: the remedy is that of the most frequent cause.

    Example:
        >>> nan = {"step": 3, "decision": "skipped", "cause": "poisoned batch", "indices": [4, 9]}
        >>> print(report_of_giving_up([nan, {"step": 4, "decision": "rolled back"}]))
        1 step skipped, 1 rolled back, most of them for: poisoned batch.
          step 3: skipped, poisoned batch (rows 4, 9 of the dataset)
          step 4: rolled back
        To go on: look at these rows of the data, and leave out or mend what is not finite.
    """
    counts = Counter(str(event.get("decision", "event")) for event in events)
    causes = Counter(str(event["cause"]) for event in events if event.get("cause"))
    said = ", ".join(
        f"{number} {'step' + 's' * (number != 1) + ' ' if not place else ''}{name}"
        for place, (name, number) in enumerate(counts.items())
    )
    common = causes.most_common(1)[0][0] if causes else ""
    first = f"{said or 'nothing was decided'}{f', most of them for: {common}' if common else ''}."
    lines = [f"  {_in_words(event)}" for event in events[-_LISTED:]]
    if len(events) > _LISTED:
        lines.insert(0, f"  ({len(events) - _LISTED} before these)")
    return "\n".join([first, *lines, f"To go on: {remedy(common)}"])


#: What to do, by the first words of a cause.
_REMEDIES = {
    "poisoned batch": "look at these rows of the data, and leave out or mend what is not finite.",
    "learning rate": "lower the learning rate, or warm it up; FindLearningRate measures one.",
    "overflow": "train in bf16-mixed or 32-true, or keep the named module in float32.",
    "weights": "add weight decay or max-norm, lower the learning rate, or restart from before.",
    "division": "add an epsilon to the named operation's denominator, root or logarithm.",
    "non-finite output": "mend the named operation, or call sl.diagnose(model, batch) on it.",
    "spike": "clip gradients (ClipGradientNorm), and look at the batches that were named.",
}


def remedy(cause: str) -> str:
    """What to do about a cause, in one sentence.

    Args:
        cause: the kind of a :class:`~stablelightning.model.blame.Cause`.

    Example:
        >>> remedy("spike")
        'clip gradients (ClipGradientNorm), and look at the batches that were named.'
    """
    found = next((text for begin, text in _REMEDIES.items() if cause.startswith(begin)), None)
    return found or "lower the learning rate, and call sl.diagnose(model, batch) on a batch."


def _in_words(event: Event) -> str:
    cause, module = event.get("cause"), event.get("module")
    text = f"step {event.get('step', '?')}: {event.get('decision', 'event')}"
    text += f", {cause}" if cause else ""
    text += f" in {module}" if module else ""
    if indices := event.get("indices"):
        more = ", ..." if len(indices) > _LISTED else ""
        text += f" (rows {', '.join(map(str, indices[:_LISTED]))}{more} of the dataset)"
    return text


def _append_whole(path: Path, line: bytes) -> None:
    """Append one line in one write; a line that a crash cut short before it is ended first."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(file, line)
    finally:
        os.close(file)


def _plain(value: Any) -> Any:
    """Plain types that strict JSON and weights-only checkpoints hold."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return _plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _WORDS.get(value, "nan")
    return str(value)


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
