"""Which activation to use where: the rules, with their reasons."""

from collections import Counter
from typing import Any, Literal, TypedDict, Unpack, get_args

from torch import nn

from stablelightning.errors import DataError, ModelError, RecipeError
from stablelightning.model.activation_names import activation_choice, activation_name, is_activation
from stablelightning.model.activation_rules import initialization_for
from stablelightning.model.output_activation import recommend_output
from stablelightning.model.prediction import Task
from stablelightning.model.recommendation import ActivationRecommendation
from stablelightning.model.structure import weight_layers

Position = Literal["hidden", "output"]

#: From this number of layers on, a plain stack of rectifiers loses its signal unless it is
#: initialized by data, and self-normalization pays.
DEEP = 8

#: A share of units that gave nothing for any row of the data, above which their function is at
#: fault: a few are found in healthy networks.
MANY_DEAD = 0.05

#: Below this number of rows the noise of a slope that is drawn for every element is not averaged
#: out.
SMALL_DATA = 10_000

_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")
_ATTENTION = ("Attention", "TransformerEncoderLayer", "TransformerDecoderLayer")


class Facts(TypedDict, total=False):
    """What is known beside the model; each is optional, and beats what the model shows.

    Args:
        activation: the one in use (``"relu"``), at the position that is asked for.
        attention: whether it is a transformer.
        dead_units: share of units that are zero for all data, in [0, 1].
        depth: number of layers with weights, >= 1.
        latency: whether the cost of a prediction comes first.
        normalized: whether norm layers or ways around the layers keep the scale.
        recurrent: whether the activation is inside a recurrence.
        rows: number of training rows, >= 1.
        standardized: whether the inputs have mean 0 and variance 1.
    """

    activation: str
    attention: bool
    dead_units: float
    depth: int
    latency: bool
    normalized: bool
    recurrent: bool
    rows: int
    standardized: bool


def recommend_activation(
    model: nn.Module | None = None,
    *,
    position: Position = "hidden",
    targets: Any = None,
    task: Task | None = None,
    **facts: Unpack[Facts],
) -> ActivationRecommendation:
    """Recommend an activation for a position, by rule and with the reason.

    Hidden, the first that applies: recurrent, tanh; latency first, ReLU or leaky ReLU; dead units
    seen, leaky ReLU or ELU; a hidden sigmoid, the scaled sigmoid (or leave a shallow one); a
    transformer, GELU; a plain deep stack, SELU on standardised inputs and leaky ReLU else; in all
    other networks ReLU. Output: softmax for exclusive classes, sigmoid for independent ones, tanh
    for targets in [-1, 1], none for other numbers, as the targets say.

    Rules are where to start; :class:`~stablelightning.callbacks.activation.SelectActivation`
    measures.

    Args:
        model: what is not given as a fact is read from its modules: depth, norms, recurrence,
            attention, the activation in use.
        position: ``"hidden"`` or ``"output"``.
        targets: for an output: class indices ``(N,)``, 0 or 1 for each label ``(N, L)``, or numbers
            ``(N, ...)``; a tensor, an array or a list.
        task: what the targets are, checked against them; without targets, it decides.
        **facts: see :class:`Facts`.

    Returns:
        An :class:`~stablelightning.model.recommendation.ActivationRecommendation`.

    Raises:
        RecipeError: an unknown position, task or fact, or one out of its range.
        DataError: the targets contradict the task, the activation in use or the model's outputs.
        ModelError: ``model`` is no module.

    Source:
        Klambauer et al. 2017, arXiv:1706.02515 (SELU); Clevert et al. 2016, arXiv:1511.07289
        (ELU); Xu et al. 2015, arXiv:1505.00853 (leaky slopes); Hendrycks, Gimpel 2016,
        arXiv:1606.08415 (GELU).

    Example:
        >>> print(recommend_activation(depth=30, standardized=True).name)
        selu
        >>> recommend_activation(position="output", targets=[0, 2, 1, 1]).name
        'softmax'
    """
    if position not in get_args(Position):
        raise RecipeError(f"position must be 'hidden' or 'output', got {position!r}.")
    if task is not None and task not in get_args(Task):
        raise RecipeError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}.")
    _check(facts)
    seen = {**_read(model, position), **facts}
    if position == "output":
        return recommend_output(model, targets, task, seen.get("activation"))
    if targets is not None:
        raise DataError(
            "targets belong to the output, and position is 'hidden'; pass position='output'."
        )
    return _hidden(seen)


def _hidden(facts: dict[str, Any]) -> ActivationRecommendation:
    """The rules, the most binding first."""
    dead = facts.get("dead_units", 0.0) > MANY_DEAD
    depth = facts.get("depth", 1)
    if facts.get("recurrent"):
        return _say(
            "tanh",
            "inside a recurrence the same layer is applied at every step, and only a bounded state "
            "cannot grow with the number of steps; it is centred as well",
            "recurrent weights orthogonal, input weights Glorot, forget bias 1 in total",
            {"relu": "only with recurrent weights that start as the identity, and clipping"},
        )
    if facts.get("latency"):
        name = "leaky_relu(0.1)" if dead else "relu"
        return _say(
            name,
            "latency comes first, and nothing is cheaper than a comparison"
            + ("; the slope below zero revives dead units" if dead else ""),
            alternatives={
                "leaky_relu": "at nearly the same cost, where units die",
                "hardswish": "smooth, at some cost, in small networks for phones",
            },
        )
    if dead:
        return _dead(facts)
    if str(facts.get("activation", "")).partition("(")[0] in ("sigmoid", "hardsigmoid"):
        return _sigmoid(depth)
    if facts.get("attention"):
        return _say(
            "gelu",
            "transformers are built and tuned with it, and their norms keep its input in range",
            alternatives={"silu": "in gated blocks (SwiGLU)", "relu": "where it must be cheap"},
        )
    if depth >= DEEP and not facts.get("normalized"):
        return _deep(facts, depth)
    return _say(
        "relu",
        "norm layers or ways around keep the scale here, so that the cheapest does"
        if facts.get("normalized")
        else f"with {depth} layers no signal is lost on the way, so that the cheapest does",
        alternatives={
            "leaky_relu(0.1)": "where units die",
            "silu": "smooth; often a little better in deep convolutional networks, at more cost",
            "gelu": "the same, in networks like transformers",
        },
    )


def _dead(facts: dict[str, Any]) -> ActivationRecommendation:
    rows = facts.get("rows")
    alternatives = {"elu": "smooth and nearer to zero mean, at the cost of an exponential"}
    notes = ["look at the learning rate and the biases too: they are what kills most units"]
    if rows is not None and rows >= SMALL_DATA:
        alternatives["rrelu"] = "its random slopes regularise, with as many rows as here"
    else:
        few = "an unknown number of" if rows is None else f"{rows:,}"
        notes.append(
            f"not RReLU: it draws a slope for every element, noise that {few} rows may not average"
        )
    alternatives["prelu"] = "learns the slope; keep it out of weight decay"
    return _say(
        "leaky_relu(0.1)",
        f"{facts['dead_units']:.0%} of the units are dead, and a slope below zero lets gradients "
        "reach them again",
        alternatives=alternatives,
        notes=notes,
    )


def _sigmoid(depth: int) -> ActivationRecommendation:
    if depth <= 2:
        return _say(
            "sigmoid",
            "one hidden layer of sigmoids trains; leave it",
            alternatives={"scaled_sigmoid": "centred, four times the slope", "relu": "faster"},
        )
    return _say(
        "scaled_sigmoid",
        "each sigmoid divides gradients by four or more and passes on values around 1/2; scaled to "
        "slope 1 through the origin it stacks, and stays bounded",
        alternatives={
            "tanh": "the same shape with half the range",
            "selu": "where nothing must be bounded, on standardised inputs",
            "sigmoid": "where the layer is a gate or a probability: leave it",
        },
    )


def _deep(facts: dict[str, Any], depth: int) -> ActivationRecommendation:
    plain = f"{depth} layers without norms or ways around"
    if facts.get("standardized") is False:
        return _say(
            "leaky_relu(0.2)",
            f"{plain}: SELU would keep the scale, but only from inputs with mean 0 and variance 1, "
            "and these have others; a leaky slope keeps inputs apart longer than ReLU does",
            alternatives={"selu": "once the inputs are standardised, which is the better cure"},
        )
    notes = [] if facts.get("standardized") else ["standardise the inputs: the rule stands on it"]
    return _say(
        "selu",
        f"{plain}: SELU drives mean and variance of every layer back to 0 and 1, so that neither "
        "signal nor gradients fade",
        alternatives={
            "tanh": "bounded and centred, with orthogonal weights",
            "leaky_relu(0.2)": "where the inputs cannot be standardised, initialized from data",
        },
        notes=[*notes, "no batch norm, no skips, and AlphaDropout in place of dropout"],
    )


def _say(
    name: str,
    reason: str,
    initialization: str = "",
    alternatives: dict[str, str] | None = None,
    notes: list[str] | None = None,
) -> ActivationRecommendation:
    return ActivationRecommendation(
        name=name,
        position="hidden",
        reason=reason,
        initialization=initialization or initialization_for(name),
        alternatives=alternatives or {},
        notes=tuple(notes or ()),
    )


# ---- what the model shows, and what was given ---------------------------------------------------


def _read(model: nn.Module | None, position: Position) -> dict[str, Any]:
    if model is None:
        return {}
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    classes = [type(m).__name__ for m in model.modules()]
    layers = weight_layers(model)
    read: dict[str, Any] = {
        "depth": max(len(layers), 1),
        "normalized": any(norm in name for name in classes for norm in _NORMS),
        "attention": any(kind in name for name in classes for kind in _ATTENTION),
        # An LSTM in the middle has its own activations: what is asked for is that of the rest.
        "recurrent": bool(layers) and all(isinstance(m, nn.RNNBase) for m in layers[:-1] or layers),
    }
    names = Counter(activation_name(m) for m in model.modules() if is_activation(m))
    if position == "hidden" and names:
        read["activation"] = names.most_common(1)[0][0]
    return read


def _check(facts: Facts) -> None:
    unknown = set(facts) - set(Facts.__annotations__)
    if unknown:
        raise RecipeError(
            f"facts must be among {', '.join(sorted(Facts.__annotations__))}, got "
            f"{', '.join(sorted(unknown))}."
        )
    dead = facts.get("dead_units", 0.0)
    if not 0 <= dead <= 1:
        raise RecipeError(f"dead_units must be a share in [0, 1], got {dead!r}.")
    for name in ("depth", "rows"):
        value = facts.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise RecipeError(f"{name} must be a whole number >= 1, got {value!r}.")
    if "activation" in facts and not _is_output_name(facts["activation"]):
        activation_choice(facts["activation"])


def _is_output_name(name: str) -> bool:
    return name.partition("(")[0] in ("softmax", "log_softmax", "linear", "identity")
