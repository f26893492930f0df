"""The callbacks that are worth having around any LightningModule."""

import lightning as L

from stablelightning.callbacks.clip import ClipGradientNorm, ClipGradients
from stablelightning.callbacks.guard import GuardTraining
from stablelightning.callbacks.initialize import InitializeWeights
from stablelightning.callbacks.uncertainty import EstimateUncertainty


def recommended_callbacks(*own: L.Callback) -> list[L.Callback]:
    """Make the callbacks for ``Trainer(callbacks=...)``: safe around any module, useful with most.

    - :class:`~stablelightning.callbacks.initialize.InitializeWeights`, because whether gradients
      vanish is decided before the first step: what is fresh from torch's constructors is drawn for
      the function that follows it. What was loaded or set by hand is left, and so is a run that
      goes on from a checkpoint.
    - :class:`~stablelightning.GuardTraining`, because one bad batch must not cost a run: a step
      that is not finite, or stands out of all before it, is undone. Without trouble training is the
      same to the bit.
    - :class:`~stablelightning.ClipGradientNorm`, because a long step undoes many short ones: the
      joint norm is held to a threshold between 1 and 5 that is chosen from the first steps. Leave
      it out where ``Trainer(gradient_clip_val=...)`` clips.
    - :class:`~stablelightning.EstimateUncertainty`, because a prediction without its uncertainty is
      half an answer: Monte Carlo scores from ``Trainer.test``, a
      :class:`~stablelightning.Prediction` per batch from ``Trainer.predict``. It costs nothing in
      ``fit``, and steps aside in words around a model that has nothing random in it
      (``required=False``), where ``predict`` gives what the module's own ``predict_step`` gives.

    The list grows with this package. Guard, monitor and clip act in that order, whatever the list
    says.

    Args:
        *own: callbacks of yours. One of a kind that is recommended takes its place, so that it can
            have other settings (a Trainer takes one of a kind); a clipper of any class that of the
            other.

    Returns:
        New callbacks at every call, as each belongs to one Trainer, and yours.

    Example:
        >>> [type(callback).__name__ for callback in recommended_callbacks()]
        ['InitializeWeights', 'GuardTraining', 'ClipGradientNorm', 'EstimateUncertainty']
        >>> clip = recommended_callbacks(ClipGradientNorm(1.0))[-1]
        >>> clip.max_norm
        1.0
    """
    usual = {
        InitializeWeights: InitializeWeights(),
        GuardTraining: GuardTraining(),
        ClipGradients: ClipGradientNorm(),
        EstimateUncertainty: EstimateUncertainty(required=False),
    }
    kept = [new for kind, new in usual.items() if not any(isinstance(o, kind) for o in own)]
    return [*kept, *own]
