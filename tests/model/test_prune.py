"""Which weights are pruned, exactly how many, and what is left of torch's reparametrization."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.prune import (
    apply_masks,
    layer_sparsity,
    make_permanent,
    masks_of,
    prunable_weights,
    prune_model,
    total_sparsity,
)
from stablelightning.nn import ConvNet, RecurrentNet
from stablelightning.nn.recurrent import VariationalLSTM


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))


def names(model: nn.Module, **settings) -> list[str]:
    return [weight.name for weight in prunable_weights(model, **settings)]


# ---- which --------------------------------------------------------------------------------------


def test_kernels_and_matrices_are_pruned_norms_biases_and_embeddings_never():
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "conv": nn.Conv2d(1, 2, 3),
            "up": nn.ConvTranspose1d(2, 2, 3),
            "norm": nn.BatchNorm2d(2),
            "slope": nn.PReLU(4),
            "both": nn.Bilinear(2, 3, 4),
            "cell": nn.GRUCell(3, 4),
            "head": nn.Linear(4, 2),
        }
    )
    assert names(model) == [
        *("conv.weight", "up.weight", "both.weight"),
        *("cell.weight_ih", "cell.weight_hh", "head.weight"),
    ]


def test_of_recurrent_nets_both_kinds_of_weights_are_pruned():
    model = RecurrentNet(3, 2, hidden=[4], layer=VariationalLSTM)
    found = names(model)
    assert sum("weight_ih" in name for name in found) == 1
    assert sum("weight_hh" in name for name in found) == 1
    assert len(found) == 3  # and the head; layer norms inside are vectors
    assert all(weight.parameter.ndim == 2 for weight in prunable_weights(model))


def test_attention_is_pruned_in_its_projections():
    assert names(nn.MultiheadAttention(4, 2)) == ["in_proj_weight", "out_proj.weight"]
    assert names(nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True)) == [
        *("q_proj_weight", "k_proj_weight", "v_proj_weight"),
        "out_proj.weight",
    ]


def test_a_shared_weight_counts_once_and_an_embeddings_not_at_all():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    model[2].weight = model[1].weight
    model[3].weight = model[0].weight
    assert names(model) == ["1.weight"]


def test_computed_weights_are_left():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    assert names(model) == ["1.weight"]


def test_excluded_modules_are_left_with_all_that_is_in_them():
    model = nn.Sequential(mlp(), nn.Linear(4, 2))
    assert names(model, exclude=["0"]) == ["1.weight"]
    assert names(model, exclude=["0.2", "1"]) == ["0.0.weight"]


def test_layers_are_called_by_their_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 3))
    found = [weight.layer for weight in prunable_weights(model)]
    assert found == ["0", "1.weight_ih_l0", "1.weight_hh_l0"]
    assert prunable_weights(nn.Linear(2, 2))[0].layer == "weight"


def test_what_cannot_be_pruned_is_refused_in_words():
    with pytest.raises(RecipeError, match="no 'encoder'"):
        prunable_weights(mlp(), exclude=["encoder"])
    with pytest.raises(ModelError, match="has none;"):
        prunable_weights(nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4)))
    with pytest.raises(ModelError, match="has none outside of exclude"):
        prunable_weights(mlp(), exclude=["0", "2"])
    with pytest.raises(ModelError, match="is lazy"):
        prunable_weights(nn.Sequential(nn.LazyLinear(3)))
    taken = mlp()
    prune.l1_unstructured(taken[0], "weight", amount=0.5)
    with pytest.raises(ModelError, match="make_permanent"):
        prunable_weights(taken)


# ---- how many -----------------------------------------------------------------------------------


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("make", [mlp, lambda: ConvNet(1, 3), lambda: nn.LSTM(5, 7, 2)])
def test_a_pruned_model_has_the_exact_share_of_zeros(make, per_layer):
    model = make()
    before = {name: id(value) for name, value in model.named_parameters()}
    layers = prune_model(model, 0.8, per_layer=per_layer)
    weights = sum(layer.weights for layer in layers)
    if per_layer:
        assert all(layer.zeros == round(0.8 * layer.weights) for layer in layers)
    else:
        assert sum(layer.zeros for layer in layers) == round(0.8 * weights)
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert total_sparsity(layers) == pytest.approx(0.8, abs=0.5 * len(layers) / weights)


def test_pruning_a_pruned_model_to_less_changes_nothing():
    model = mlp()
    prune_model(model, 0.9)
    before = copy.deepcopy(model.state_dict())
    prune_model(model, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_everything_and_nothing_are_refused(wrong):
    with pytest.raises(RecipeError, match="sparsity must be in"):
        prune_model(mlp(), wrong)


# ---- torch's own --------------------------------------------------------------------------------


def test_masks_hold_as_torchs_and_leave_no_trace_when_made_permanent():
    model = mlp()
    parameters = list(model.parameters())
    weights = prunable_weights(model)
    masks = masks_of(weights, 0.5, per_layer=True)
    expected = [w.parameter.detach() * mask for w, mask in zip(weights, masks, strict=True)]
    apply_masks(model, {w.name: mask for w, mask in zip(weights, masks, strict=True)})
    assert prune.is_pruned(model)
    assert model[0].weight_orig is parameters[0]
    make_permanent(model)
    assert not prune.is_pruned(model)
    # The state of an optimizer is kept by number: parameters must stand where they stood.
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(w.parameter, e) for w, e in zip(weights, expected, strict=True))
    assert not any((w.parameter[w.parameter == 0]).signbit().any() for w in weights)
    copy.deepcopy(model)  # which a model that torch's prune holds does not survive


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ModelError, match=r"0\.weight \(2, 2\) for shape \(10, 6\)"):
        apply_masks(mlp(), {"0.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ModelError, match="no such parameter"):
        apply_masks(mlp(), {"1.weight": torch.ones(2, 2, dtype=torch.bool)})


def test_counts_are_of_the_weights_as_they_are_now():
    model = mlp()
    weights = prunable_weights(model)
    model[0].weight.data[0] = 0
    first, second = layer_sparsity(weights)
    assert (first.zeros, first.weights, first.sparsity) == (6, 60, 0.1)
    assert second.zeros == 0
    assert total_sparsity([]) == 0
