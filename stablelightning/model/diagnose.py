"""sl.diagnose: what will go wrong in training, read from one step of it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from stablelightning.errors import DataError, ModelError
from stablelightning.model.attribution import Attribution, attribute
from stablelightning.model.diagnosis import Diagnosis, LayerSignal, sorted_findings
from stablelightning.model.findings import RULES
from stablelightning.model.findings.examination import Examination
from stablelightning.model.measurement import MeasuredLayer, Measurement
from stablelightning.model.preserve import preserved
from stablelightning.model.signals import measure
from stablelightning.model.step import Loss, TrainingStep
from stablelightning.model.trial import Trial, held_by, try_step

#: How often cures are followed by a new diagnosis and, where errors are left, by further cures.
CURE_ROUNDS = 3


def diagnose(
    model: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    clipped: bool | None = None,
) -> Diagnosis:
    """Examine a model before training: which layer will vanish, explode, die or stand still.

    One watched forward, one training step (forward and backward, in training mode), and with an
    optimizer two more forwards around one trial step: less than three training steps. The model,
    its flags, buffers, gradients and every random number generator are afterwards as before, and
    the optimizer is never touched.

    Args:
        model: any eager module; a LightningModule brings its own ``training_step``.
        batch: ``(inputs, target)``, a dict with a key like ``target``, or inputs alone, on any
            device; 32 rows and more tell dead units from idle ones.
        loss: ``loss(output, target)``. ``None``: the module's own step, else cross entropy for
            whole-number targets, mean squared error for floats, else a fixed random projection of
            the output.
        optimizer: what the model will be trained with: its rate is tried, its settings are read.
        clipped: whether gradients will be clipped, for recurrent models; ``None`` if that is not
            known (a trainer that a LightningModule is attached to is asked).

    Returns:
        A :class:`~stablelightning.model.diagnosis.Diagnosis`: findings, worst first, and the
        signal at every layer. ``print`` shows it; ``apply()`` performs the mechanical cures.

    Raises:
        DataError: the batch does not fit the forward or the loss.
        ModelError: the model has no parameters, is scripted, or lies on the meta device.

    Source:
        Glorot, Bengio 2010 (profiles of activations and gradients over depth); Poole et al. 2016,
        arXiv:1606.05340 (correlation of inputs); docs/doctor.md for each finding.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> _ = nn.init.constant_(net[0].bias, -10.0)
        >>> found = diagnose(net, (torch.randn(64, 8), torch.randint(2, (64,)))).findings[0]
        >>> found.code, found.module, found.severity
        ('dead-units', '0', 'error')
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model must be an nn.Module, got {type(model).__name__}; pass the network itself."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a diagnosis needs an eager module, got a scripted one; pass the original."
        )
    with torch.inference_mode(False), torch.enable_grad(), _eagerly(model):
        step = TrainingStep(model, batch, loss)
        examination = _examine(model, step, optimizer, clipped)
    findings = [f for rule in RULES for f in rule(examination)]
    measurement = examination.measurement

    def cure(diagnosis: Diagnosis) -> Diagnosis:
        from stablelightning.model.cures import apply_cures  # imports initialize and the blocks

        now, done = diagnosis, []
        for _ in range(CURE_ROUNDS):
            treatments = apply_cures(model, now.findings, step.inputs)
            new = [treatment for treatment in treatments if treatment not in done]
            done += new
            now = diagnose(model, batch, loss, optimizer=optimizer, clipped=clipped)
            # Behind a layer that overflows nothing can be seen: its cure brings new findings. The
            # same cure once more brings none.
            if now.worst != "error" or not any(treatment.done for treatment in new):
                break
        now.before, now.treatments = diagnosis, done
        return now

    return Diagnosis(
        findings=sorted_findings(findings),
        layers=[_signal(layer) for layer in measurement.layers],
        loss=measurement.loss,
        forward_slope=measurement.forward_slope(),
        gradient_slope=measurement.gradient_slope(),
        underflow=measurement.underflow,
        notes=measurement.notes,
        cure=cure,
    )


def _eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    """Compiled modules run eagerly: hooks inside of them would not be called otherwise."""
    if not any(hasattr(m, "_orig_mod") for m in model.modules()):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _examine(
    model: nn.Module,
    step: TrainingStep,
    optimizer: torch.optim.Optimizer | None,
    clipped: bool | None,
) -> Examination:
    attribution, notes = _attribution(model, step)
    with preserved(model):
        if not model.training:
            model.train()
        measurement = measure(model, step, attribution, lossy_dtype=_precision(model))
    measurement.notes += notes
    trial = None if optimizer is None else _trial(model, step, optimizer, measurement)
    measurement.gradients.clear()
    return Examination(model, measurement, optimizer, trial, clipped)


def _trial(
    model: nn.Module,
    step: TrainingStep,
    optimizer: torch.optim.Optimizer,
    measurement: Measurement,
) -> Trial | None:
    name = type(optimizer).__name__
    if not measurement.gradients or measurement.fault is not None:
        return None
    if not held_by(optimizer, measurement.gradients):
        measurement.notes.append(f"no trial step was taken: {name} holds no parameter of the model")
        return None
    with preserved(model, moved=True):
        if not model.training:
            model.train()
        trial = try_step(model, step, optimizer, measurement.gradients)
    if trial is None:
        measurement.notes.append(f"no trial step was taken: {name} cannot be copied")
    return trial


def _attribution(model: nn.Module, step: TrainingStep) -> tuple[Attribution | None, list[str]]:
    """The roles of the layers, from the forward, or from the module's own step without one."""
    try:
        found = attribute(model, step.inputs)
    except (DataError, NotImplementedError) as error:
        if not step.own:
            return None, [f"what consumes each layer could not be followed: {error}"]
        with preserved(model):
            try:
                found = attribute(model, step.inputs, call=step.call)
            except DataError as second:
                return None, [f"what consumes each layer could not be followed: {second}"]
    return found, list(found.notes)


def _precision(model: nn.Module) -> torch.dtype | None:
    """float16 where the trainer that the module is attached to trains in it."""
    trainer = getattr(model, "_trainer", None)
    return torch.float16 if str(getattr(trainer, "precision", "")).startswith("16") else None


def _signal(layer: MeasuredLayer) -> LayerSignal:
    activation = layer.activation
    return LayerSignal(
        name=layer.name,
        index=layer.index,
        depth=layer.depth,
        kind=layer.kind,
        activation=layer.consumer,
        mean=layer.output.mean,
        std=layer.output.std,
        cosine=layer.output.cosine,
        gradient_rms=layer.gradient_rms,
        dead=float("nan") if activation is None else activation.dead,
        saturated=float("nan") if activation is None else activation.saturated,
    )
