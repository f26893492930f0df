"""The rules of the doctor, causes before what follows from them."""

from stablelightning.model.findings import (
    activations,
    backward,
    finite,
    forward,
    inputs,
    losses,
    norms,
    optimizers,
    recurrent,
    structure,
    weights,
)
from stablelightning.model.findings.examination import Rule

#: In this order findings of one severity are shown, and rules are asked: those about a cause come
#: first and say what they explain, so that its consequences are not reported as faults.
RULES: tuple[Rule, ...] = (
    finite.non_finite,
    norms.batch_norm_one_row,
    inputs.input_not_standardised,
    inputs.collapsed_input,
    losses.loss_expects_other,
    norms.norm_parameters,
    weights.symmetric_weights,
    weights.weight_scale,
    activations.dead_units,
    activations.saturated_units,
    structure.saturating_depth,
    structure.self_normalization_broken,
    forward.exploding_signal,
    forward.collapsed_signal,
    backward.vanishing_gradient,
    backward.exploding_gradient,
    optimizers.learning_rate_too_high,
    optimizers.settings_known_to_hurt,
    optimizers.decayed_prelu,
    norms.dropout_before_norm,
    norms.recurrent_batch_norm,
    backward.gradient_underflow,
    structure.plain_depth,
    recurrent.recurrent_without_clipping,
    activations.not_zero_centred,
    structure.mixed_activations,
)
