"""The named slots ``stable.<concern>``: one callback each; slots merge, lists do not."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Slot:
    """One concern and the callback that usually fills it.

    Args:
        concern: the name after ``stable.``, which is also the prefix of the keys it logs.
        callback: dotted path of the callback that is taken where only its settings are given.
        help: one line for ``--help``.
        unasked: its arguments in a ``run`` whose recipe does not mention the slot; ``None`` leaves
            the slot empty there.
    """

    concern: str
    callback: str
    help: str
    unasked: dict[str, Any] | None = field(default=None)

    @property
    def key(self) -> str:
        """The slot's key in a recipe and on the command line."""
        return f"stable.{self.concern}"

    def load(self) -> type:
        """Import the usual callback, which also makes its short class name known to the parser."""
        module, _, name = self.callback.rpartition(".")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]


#: A new concern is a new line here. In the order of ``setup``: what changes the model comes first,
#: and the doctor sees what it has become.
SLOTS = (
    Slot(
        "uncertainty",
        "stablelightning.callbacks.uncertainty.EstimateUncertainty",
        "Monte Carlo dropout when testing and predicting.",
        # Every run estimates uncertainty; where nobody asked for it, a model with nothing random
        # in it is told so in a warning, not an error.
        unasked={"required": False},
    ),
    Slot(
        "calibrate",
        "stablelightning.callbacks.calibrate.Calibrate",
        "Predictions as sure as they are right, by what the validation data says after training.",
    ),
    Slot(
        "activation",
        "stablelightning.callbacks.activation.SelectActivation",
        "An activation that is chosen by measurement, or swapped in, before training.",
    ),
    Slot(
        "pretrain",
        "stablelightning.callbacks.pretrain.PretrainFirst",
        "Weights learned on other data, without labels, or from a file, before fine-tuning.",
    ),
    Slot(
        "initialize",
        "stablelightning.callbacks.initialize.InitializeWeights",
        "Weights drawn for the function that follows them; loaded ones are left.",
    ),
    Slot(
        "doctor",
        "stablelightning.callbacks.doctor.ConsultDoctor",
        "A diagnosis before training, and the cures where they are asked for.",
    ),
    Slot(
        "unfreeze",
        "stablelightning.callbacks.freeze.UnfreezeGradually",
        "Which depth groups of a model are trained, and when: gradually, the head, all slowly.",
    ),
    Slot(
        "learning_rate",
        "stablelightning.callbacks.learning_rate.FindLearningRate",
        "A learning rate found by trying, before training: a sweep, or halving.",
    ),
    Slot(
        "guard",
        "stablelightning.callbacks.guard.GuardTraining",
        "Bad steps are undone, training goes back to a good state, or is given up in words.",
    ),
    Slot(
        "monitor",
        "stablelightning.callbacks.monitor.MonitorSignals",
        "Gradients, updates and activations of every layer during training, with alarms.",
    ),
    Slot(
        "clip",
        "stablelightning.callbacks.clip.ClipGradientNorm",
        "Gradients are made smaller before the step where they are too large.",
    ),
    Slot(
        "regularize",
        "stablelightning.callbacks.regularize.RegularizeL1",
        "A penalty on the size of weights, or a bound on it, after each optimizer step.",
    ),
    Slot(
        "sparse",
        "stablelightning.callbacks.sparse.PruneGradually",
        "Small weights become zero while training goes on, to an exact share.",
    ),
    Slot(
        "gap",
        "stablelightning.callbacks.gap.MeasureGap",
        "Training against validation loss, both without dropout, and what their gap advises.",
    ),
    Slot(
        "stop",
        "stablelightning.callbacks.stop_early.StopEarly",
        "Stop when validation no longer improves, and go back to the best weights.",
    ),
    Slot(
        "latency",
        "stablelightning.callbacks.export.ExportModel",
        "A folded, exported and checked model at the end of training, with its latency.",
    ),
    Slot(
        "backbone",
        "stablelightning.callbacks.backbone.SaveBackbone",
        "The trained network as a file that fine-tuning takes, at the end of training.",
        # Every run of a pretraining module leaves one; of others, where it is asked for.
        unasked={"required": False},
    ),
    Slot(
        "conformal",
        "stablelightning.callbacks.conformal.PredictSets",
        "Sets of classes, or intervals, that hold the target as often as was promised.",
    ),
    Slot(
        "decide",
        "stablelightning.callbacks.abstain.AbstainWhenUnsure",
        "Answers where the model is sure enough, and reasons where it is not.",
    ),
    Slot(
        "predictions",
        "stablelightning.callbacks.predictions.WritePredictions",
        "One table of what predict predicts, on any number of processes.",
    ),
    Slot(
        "optimizer_modes",
        "stablelightning.callbacks.optimizer_modes.SwitchOptimizerModes",
        "Schedule-free optimizers are in the mode that the moment needs; around others, nothing.",
        unasked={},
    ),
    Slot(
        "average",
        "lightning.pytorch.callbacks.EMAWeightAveraging",
        "A moving average of the weights, which validates and is kept; Lightning's own.",
    ),
)
