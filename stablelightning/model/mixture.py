"""Several predictions of the same rows as one: the prediction of the mixture."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from stablelightning.errors import DataError, ModelError
from stablelightning.functional.uncertainty import binary_entropy, entropy, variation_ratio
from stablelightning.model.collect import concatenate_chunks, stack_outputs
from stablelightning.model.generators import preserved_generators
from stablelightning.model.inputs import arguments_of
from stablelightning.model.members import Members
from stablelightning.model.prediction import Prediction
from stablelightning.model.stochastic import (
    StochasticModules,
    sampling_mode,
    stochastic_modules,
)
from stablelightning.model.summarize import Summary, infer_task, select_output


@dataclass(frozen=True)
class Reading:
    """How outputs become a prediction; each as for :func:`~stablelightning.mc_dropout`."""

    task: str = "auto"
    class_dim: int = 1
    keep_samples: bool = False


def combine_predictions(predictions: Sequence[Prediction], *, class_dim: int = 1) -> Prediction:
    """The prediction of an ensemble from those of its members, each of equal weight.

    The members' means are averaged (probabilities, never logits). ``aleatoric`` is the mean of
    theirs; ``epistemic`` is what the members, and the samples of each, disagree about: the entropy
    of the mean less the expected entropy, or the variance of all predicted means. Nothing is lost
    by combining predictions instead of samples: both parts are those of all samples pooled.

    ``variation_ratio`` counts members, one vote each, and ``standard_error`` is that of a mean over
    members, which the number of samples does not make smaller. What was calibrated, decided or
    promised about single members (sets, intervals, answers) does not hold for the mixture, and is
    left out; so are samples of which some members have more, as they would count for more.

    Args:
        predictions: M >= 1 predictions of the same rows, from members of any architecture.
        class_dim: where the classes are; -1 for ``(N, L, C)`` tokens.

    Raises:
        DataError: no predictions, or of other rows or classes.
        ModelError: predictions of different tasks.

    Source:
        Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4 (the mixture);
        Depeweg et al. 2018, arXiv:1710.07283 (the split).

    Example:
        >>> from stablelightning import mc_dropout
        >>> nets = [nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)) for _ in range(3)]
        >>> x = torch.randn(5, 4)
        >>> whole = combine_predictions([mc_dropout(net, x, samples=20) for net in nets])
        >>> whole.samples_used, whole.engine
        (60, '3 members')
    """
    predictions = list(predictions)
    _check_same(predictions)
    first = predictions[0]
    means = torch.stack([prediction.mean for prediction in predictions])
    mean = means.mean(0)
    aleatoric = torch.stack([prediction.aleatoric for prediction in predictions]).mean(0)
    ratio = None
    if first.task == "regression":
        within = torch.stack([prediction.epistemic for prediction in predictions]).mean(0)
        epistemic = within + means.var(0, correction=0)
        total = aleatoric + epistemic
    elif first.task == "multilabel":
        total = binary_entropy(mean)
        votes = (means > 0.5).to(mean.dtype).sum(0)
        ratio = 1 - torch.maximum(votes, len(means) - votes) / len(means)
    else:
        total = entropy(mean, dim=class_dim)
        chosen = means.argmax(class_dim + 1 if class_dim >= 0 else class_dim, keepdim=True)
        votes = torch.zeros_like(means).scatter_(
            class_dim + 1 if class_dim >= 0 else class_dim, chosen, 1
        )
        ratio = variation_ratio(votes.sum(0), dim=class_dim)
    if first.task != "regression":
        epistemic = (total - aleatoric).clamp(min=0)  # rounding can leave -1e-8
    kept = [prediction.samples for prediction in predictions]
    alike = len({prediction.samples_used for prediction in predictions}) == 1
    return Prediction(
        task=first.task,
        mean=mean,
        total=total,
        aleatoric=aleatoric,
        epistemic=epistemic,
        standard_error=_standard_error(predictions, means),
        samples_used=sum(prediction.samples_used for prediction in predictions),
        engine=f"{len(predictions)} members",
        variation_ratio=ratio,
        samples=concatenate_chunks(kept) if alike and all(k is not None for k in kept) else None,
    )


def predict_members(
    model: Members,
    inputs: Any,
    draw: Callable[[], Prediction],
    *,
    reading: Reading,
    seed: int | None = None,
    call: Callable[..., Any] | None = None,
) -> Prediction:
    """The mixture of what members say, each of them sampled where something in it is random.

    Args:
        model: called with the inputs, and asked to be one member after the other.
        inputs: as for :func:`~stablelightning.mc_dropout`.
        draw: predicts by sampling whatever member the model is.
        reading: how outputs are read.
        seed: of everything that is drawn.
        call: what is called instead of the model itself.
    """
    module = model.module
    args, kwargs = arguments_of(inputs)
    function = call or module
    with torch.inference_mode(False), torch.no_grad():
        with model.as_member(0):
            found = stochastic_modules(module, lambda: function(*args, **kwargs))
        with nullcontext() if seed is None else preserved_generators(seed):
            if found or model.members == 1:
                return _each_drawn(model, draw, reading.class_dim)
            with sampling_mode(found):
                if call is None:
                    outputs = model.member_outputs(*args, **kwargs)
                else:
                    outputs = _one_by_one(model, lambda: call(*args, **kwargs))
    return plain_prediction(outputs, model=module, reading=reading)


def plain_prediction(outputs: Any, *, model: nn.Module, reading: Reading) -> Prediction:
    """A prediction from one output ``(M, ...)`` of each of M members.

    Args:
        outputs: what models give, stacked.
        model: whose ``task`` counts where that of the reading is ``"auto"``.
        reading: how outputs are read.

    Example:
        >>> reading = Reading(task="classification")
        >>> plain_prediction(torch.randn(5, 8, 3), model=nn.Identity(), reading=reading).engine
        '5 members'
    """
    output = select_output(outputs)
    first = tree_map(lambda x: x[0], output)
    summary = Summary(infer_task(reading.task, model, first), class_dim=reading.class_dim)
    summary.update_(output)
    number = summary.centre.count
    engine = f"{number} members" if number > 1 else "plain"
    return summary.prediction(engine=engine, samples=outputs if reading.keep_samples else None)


def run_plainly(model: nn.Module, inputs: Any) -> Any:
    """One pass of a model in eval, with an axis of 1 before it; its flags are left as they were."""
    args, kwargs = arguments_of(inputs)
    everything = StochasticModules(modules=list(model.modules()))
    with torch.inference_mode(False), torch.no_grad(), sampling_mode(everything):
        return stack_outputs([model(*args, **kwargs)])


def _one_by_one(model: Members, run: Callable[[], Any]) -> Any:
    outputs = []
    for number in range(model.members):
        with model.as_member(number):
            outputs.append(run())
    return stack_outputs(outputs)


def _each_drawn(model: Members, draw: Callable[[], Prediction], class_dim: int) -> Prediction:
    predictions = []
    for number in range(model.members):
        with model.as_member(number):
            predictions.append(draw())
    return combine_predictions(predictions, class_dim=class_dim)


def _standard_error(predictions: list[Prediction], means: Tensor) -> Tensor:
    if len(predictions) == 1:
        return predictions[0].standard_error
    return (means.var(0, correction=1) / len(predictions)).sqrt()


def _check_same(predictions: list[Prediction]) -> None:
    if not predictions:
        raise DataError("an ensemble needs one or more predictions, got none.")
    first = predictions[0]
    for prediction in predictions[1:]:
        if prediction.task != first.task:
            raise ModelError(
                "members of an ensemble must have one task, got predictions of "
                f"{first.task} and of {prediction.task}."
            )
        if prediction.mean.shape != first.mean.shape:
            raise DataError(
                "members of an ensemble must predict the same rows and classes, got means of "
                f"shape {tuple(first.mean.shape)} and {tuple(prediction.mean.shape)}."
            )
