"""From a table in its own units to what a model is given, by statistics of the training rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stablelightning.data.splits import Split
from stablelightning.data.standardize import Standardization
from stablelightning.errors import DataError


@dataclass(frozen=True)
class Table:
    """What was read, in its own units.

    Args:
        features: names of the input columns.
        inputs: float64 ``(N, F)``.
        target: float64 ``(N,)`` for regression; int64 ``(N,)``, places in ``class_names``, else.
        class_names: the classes; ``None`` for regression.
        split: which rows train, validate and test.
    """

    features: tuple[str, ...]
    inputs: Tensor
    target: Tensor
    class_names: tuple[str, ...] | None
    split: Split


@dataclass(frozen=True)
class Encoding:
    """What a trained model expects: its training rows' statistics, and the order of its classes.

    Args:
        features: names of the input columns, in the order of the model's input.
        inputs: statistics of those columns.
        target: statistics of the target; ``None`` for classification.
        class_names: the classes, in the order of their numbers; ``None`` for regression.
    """

    features: tuple[str, ...]
    inputs: Standardization
    target: Standardization | None
    class_names: tuple[str, ...] | None

    @classmethod
    def fit(cls, table: Table) -> "Encoding":
        """Measure the training rows of ``table``, and no others.

        Raises:
            DataError: a column's values are so large that its variance overflows.
        """
        train = table.split.train
        inputs = Standardization.fit(table.inputs[train])
        for name, finite in zip(table.features, inputs.scale.isfinite().tolist(), strict=True):
            if not finite:
                raise DataError(
                    f"column {name!r} must have a finite variance, and its values are too large "
                    "for that; express it in a larger unit."
                )
        target = Standardization.fit(table.target[train]) if table.class_names is None else None
        return cls(table.features, inputs, target, table.class_names)

    def apply(self, table: Table) -> tuple[Tensor, Tensor]:
        """Return inputs float32 ``(N, F)`` and target ``(N,)``: float32, or int64 for classes."""
        # A checkpoint's columns may stand in another order, beside others, in the file at hand, and
        # the file may lack some of its classes.
        columns = [table.features.index(feature) for feature in self.features]
        inputs = self.inputs.apply(table.inputs[:, columns])
        if self.target is not None:
            return inputs, self.target.apply(table.target)
        known = self.class_names or ()
        numbers = torch.tensor([known.index(name) for name in table.class_names or ()])
        return inputs, numbers[table.target]

    def check(self, table: Table) -> None:
        """Check that ``table`` can be given to a model that was trained with this encoding.

        Raises:
            DataError: the table lacks a column, or has classes that the model does not know.
        """
        missing = [name for name in self.features if name not in table.features]
        if missing:
            raise DataError(
                "the data must have every column that the checkpoint was trained on, and lacks "
                f"{', '.join(missing)}; it has {', '.join(table.features)}."
            )
        unknown = set(table.class_names or ()) - set(self.class_names or ())
        if unknown or (table.class_names is None) != (self.class_names is None):
            known = ", ".join(self.class_names or ["none: it is a regression"])
            got = ", ".join(sorted(unknown)) or "a target without classes"
            raise DataError(
                f"classes must be those that the checkpoint was trained on ({known}), got {got}; "
                "correct target and task."
            )

    def state(self) -> dict[str, Any]:
        """Return the encoding as plain types and tensors, for a checkpoint."""
        return {
            "features": list(self.features),
            "inputs": list(self.inputs),
            "target": None if self.target is None else list(self.target),
            "class_names": None if self.class_names is None else list(self.class_names),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Encoding":
        """Rebuild the encoding that :meth:`state` returned."""
        target, names = state["target"], state["class_names"]
        return cls(
            features=tuple(state["features"]),
            inputs=Standardization(*state["inputs"]),
            target=None if target is None else Standardization(*target),
            class_names=None if names is None else tuple(names),
        )
