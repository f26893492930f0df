"""What goes with an activation: its initialization, in words."""

#: Bounded functions with their own slope at the origin.
_BOUNDED = (
    "hardsigmoid",
    "hardtanh",
    "scaled_sigmoid",
    "sigmoid",
    "softsign",
    "tanh",
)

_BY_NAME = {
    "selu": "LeCun normal, std 1/sqrt(fan_in), zero biases",
    "maxout": (
        "normal, std 1/sqrt(fan_in) for two pieces (for k the gain is 1/sqrt(E[max of k]^2)), zero "
        "biases; the layers draw it by themselves"
    ),
    "relu": "He normal, std sqrt(2/fan_in), zero biases",
    "leaky_relu": "He normal, std sqrt(2/((1 + slope^2) fan_in)), zero biases",
    "prelu": "He normal, std sqrt(2/((1 + slope^2) fan_in)) with its initial slope, zero biases",
}


def initialization_for(activation: str) -> str:
    """Say which initialization goes with an activation.

    Args:
        activation: a name as :func:`~stablelightning.model.activation_names.activation_name` gives.

    Example:
        >>> initialization_for("selu")
        'LeCun normal, std 1/sqrt(fan_in), zero biases'
    """
    name = activation.partition("(")[0]
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _BOUNDED:
        return "Glorot, std sqrt(2/(fan_in + fan_out)), zero biases"
    return "He normal with the function's exact gain, std 1/sqrt(E[f(z)^2] fan_in), zero biases"
