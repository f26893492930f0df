"""What is written sparsely is read back to the bit, and is small."""

import pytest
import torch
from torch import nn

from stablelightning.errors import CheckpointError, OutputError
from stablelightning.model.prune import prune_model
from stablelightning.model.sparse_file import load_sparse, save_sparse, sizes_on_disk
from stablelightning.nn import ConvNet


def mlp(width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 4))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.signbit(), b.signbit()) and torch.equal(a, b)


@pytest.mark.parametrize(
    "make", [mlp, lambda: ConvNet(1, 3), lambda: nn.LSTM(20, 30)], ids=["mlp", "conv", "lstm"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dense_weights_come_back_to_the_bit(make, dtype, tmp_path):
    torch.manual_seed(0)
    model, other = make().to(dtype), make().to(dtype)
    prune_model(model, 0.9)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] = -0.0
    save_sparse(model, tmp_path / "model.pt")
    assert load_sparse(other, tmp_path / "model.pt") is other
    wanted = model.state_dict()
    assert all(same_bits(value, wanted[name]) for name, value in other.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_only_what_becomes_smaller_is_kept_as_rows(tmp_path):
    model = mlp()
    prune_model(model, 0.9, exclude=["2"])
    save_sparse(model, tmp_path / "model.pt")
    kept = torch.load(tmp_path / "model.pt", weights_only=True)["state"]
    layouts = {name: value.layout for name, value in kept.items()}
    assert layouts.pop("0.weight") is torch.sparse_csr
    assert set(layouts.values()) == {torch.strided}


def test_ninety_percent_sparse_is_a_quarter_of_the_size(tmp_path):
    model = mlp(width=2048)
    sizes = sizes_on_disk(model)
    assert sizes["sparse"] >= sizes["dense"] * 0.99  # nothing to gain
    prune_model(model, 0.9)
    sizes = sizes_on_disk(model)
    assert save_sparse(model, tmp_path / "model.pt") == sizes["sparse"]
    assert sizes["sparse"] < sizes["dense"] / 3.5
    assert sizes["dense_zipped"] < sizes["dense"] / 4
    assert sizes["sparse_zipped"] < sizes["sparse"]
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    assert abs((tmp_path / "dense.pt").stat().st_size - sizes["dense"]) < 1000


def test_a_shared_weight_is_written_once(tmp_path):
    shared = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    alone = save_sparse(shared, tmp_path / "alone.pt")
    shared[1].weight = shared[0].weight
    for sparsity in (None, 0.9):
        if sparsity:
            prune_model(shared, sparsity)
        size = save_sparse(shared, tmp_path / "shared.pt")
        assert size < 0.6 * alone
        other = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        load_sparse(other, tmp_path / "shared.pt")
        assert torch.equal(other[1].weight, shared[0].weight)


def test_files_that_are_none_of_ours_are_refused_in_words(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_sparse(mlp(), path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_sparse(mlp(), path)
    torch.save(mlp().state_dict(), path)
    with pytest.raises(CheckpointError, match="another kind of checkpoint"):
        load_sparse(mlp(), path)
    save_sparse(mlp(), path)
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_sparse(mlp(width=8), path)


def test_a_folder_that_is_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be written to"):
        save_sparse(mlp(), tmp_path / "file" / "model.pt")
