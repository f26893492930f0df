"""What every calibrator is: fitted once on rows of known target, applied to all later ones."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from stablelightning.calibration.classes import class_dim
from stablelightning.errors import DataError, ModelError
from stablelightning.model.prediction import Prediction, Task


class Calibrator(ABC):
    """Something that learns from predictions whose targets are known, and improves other ones.

    A subclass says what it learns (:meth:`_fit`), what it does (:meth:`_apply`), and which numbers
    that takes (:meth:`_state`, :meth:`_load`). This class checks the rest: the task, the shapes,
    that it was fitted, and that it is not judged by the rows that it has learned from.

    Attributes:
        tasks: the tasks whose predictions it understands.
        name: what ``Prediction.corrected`` says after it was applied.
        least_rows: the fewest rows that it can learn from.
        fitted: whether it has learned, or was loaded.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    name: ClassVar[str] = "calibrated"
    least_rows: ClassVar[int] = 1

    def __init__(self) -> None:
        self.fitted = False
        self._seen: Tensor | None = None
        self._fitted_to: tuple[Task, int] | None = None

    def fit(self, prediction: Prediction, target: Tensor, *, rows: Tensor | None = None) -> Self:
        """Learn from predictions of rows that the model was not trained on.

        Args:
            prediction: of N rows.
            target: ``(N,)`` class indices, or values in target units.
            rows: ``(N,)`` int64, one number that names each row (a hash of its input, say), by
                which :meth:`__call__` knows it again; ``None`` takes no notice of rows.

        Returns:
            Itself.

        Raises:
            DataError: too few rows, NaN, shapes that do not fit, or one class only.
            ModelError: predictions of another task.
        """
        self._check(prediction)
        if len(target) < self.least_rows:
            raise DataError(
                f"{type(self).__name__} needs {self.least_rows} calibration rows or more, got "
                f"{len(target)}; keep more rows for it."
            )
        if len(prediction.mean) != len(target):
            raise DataError(
                f"every row needs a target, got {len(prediction.mean)} predictions and "
                f"{len(target)} targets; pass those of the same rows."
            )
        both = torch.isfinite(prediction.mean).all() and torch.isfinite(target).all()
        if not bool(both):
            raise DataError(
                f"{type(self).__name__} must be fitted on finite predictions and targets, got NaN "
                "or infinity; look for it in the data, or in the model."
            )
        self._fit(prediction, target.to(prediction.mean.device), rows)
        self._fitted_to = _outputs_of(prediction)
        self._seen = None if rows is None else rows.cpu().unique()
        self.fitted = True
        return self

    def __call__(self, prediction: Prediction, *, rows: Tensor | None = None) -> Prediction:
        """Correct a prediction.

        Args:
            prediction: of any rows but those of :meth:`fit`.
            rows: what names the rows, as in :meth:`fit`.

        Raises:
            ModelError: not fitted yet, or a prediction of another task, or of other outputs.
            DataError: rows that it was fitted on.
        """
        self._refuse_seen(rows)
        return self.applied(prediction, rows)

    def applied(self, prediction: Prediction, rows: Tensor | None = None) -> Prediction:
        """As a call, for one who has seen to it that the rows are not those of :meth:`fit`.

        Args:
            prediction: of any rows.
            rows: what names them; what is drawn for a row depends on nothing else.

        Raises:
            ModelError: not fitted yet, or a prediction of another task, or of other outputs.
        """
        self._check(prediction)
        if not self.fitted:
            raise ModelError(
                f"{type(self).__name__} must be fitted before it is applied, got a fresh one; "
                "call fit(prediction, target) with rows kept for that, or load its state."
            )
        outputs = _outputs_of(prediction)
        if self._fitted_to not in (None, outputs):
            raise ModelError(
                f"{type(self).__name__} was fitted to a {_named(self._fitted_to)}, got a "
                f"{_named(outputs)}; fit it to predictions of this model."
            )
        corrected = self._apply(prediction, rows)
        return replace(corrected, corrected=(*prediction.corrected, self.name))

    def knows(self, rows: Tensor) -> Tensor:
        """Which of these rows it was fitted on, ``(N,)`` bool; none if it was not told of rows."""
        rows = rows.cpu()
        if self._seen is None:
            return torch.zeros(len(rows), dtype=torch.bool)
        return torch.isin(rows, self._seen)

    def seen(self, rows: Tensor) -> int:
        """How many of these rows it was fitted on; 0 where :meth:`fit` was not told of rows."""
        return int(self.knows(rows).sum())

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors; empty before it is fitted."""
        if not self.fitted:
            return {}
        return {"seen": self._seen, "fitted_to": self._fitted_to, **self._state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        if state:
            self._seen = state["seen"]
            fitted_to = state.get("fitted_to")
            self._fitted_to = None if fitted_to is None else tuple(fitted_to)
            self._load({k: v for k, v in state.items() if k not in ("seen", "fitted_to")})
            self.fitted = True

    def _refuse_seen(self, rows: Tensor | None) -> None:
        if rows is None:
            return
        again = self.seen(rows)
        # One row of a data set may stand in it twice; half of a batch is no chance.
        if 2 * again > len(rows):
            raise DataError(
                f"{type(self).__name__} must not be judged by the rows that it was fitted on, got "
                f"{again} of them in {len(rows)}; test it on data of its own."
            )

    def _check(self, prediction: Prediction) -> None:
        if prediction.task not in self.tasks:
            raise ModelError(
                f"{type(self).__name__} is for {' and '.join(self.tasks)}, got a prediction of "
                f"{prediction.task}; take another calibrator."
            )

    @abstractmethod
    def _fit(self, prediction: Prediction, target: Tensor, rows: Tensor | None) -> None: ...

    @abstractmethod
    def _apply(self, prediction: Prediction, rows: Tensor | None) -> Prediction: ...

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _load(self, state: dict[str, Any]) -> None: ...


def _outputs_of(prediction: Prediction) -> tuple[Task, int]:
    """The task, and how many classes, labels or targets there are; 0 where nobody can tell."""
    mean = prediction.mean
    if prediction.task == "regression" and mean.ndim > 2:
        return prediction.task, 0  # rows of pixels or steps, and any number of them
    return prediction.task, 1 if mean.ndim == 1 else mean.shape[class_dim(prediction)]


def _named(outputs: tuple[Task, int]) -> str:
    task, number = outputs
    return f"{task} of {number} {'output' if number == 1 else 'outputs'}" if number else task
