"""Exports run elsewhere and give what the model gives, or are refused and leave no file."""

import importlib.util
import os
import stat

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stablelightning.errors import (
    MissingPackageError,
    ModelError,
    NothingRandomError,
    OutputError,
    RecipeError,
)
from stablelightning.model.export import export_model, export_onnx
from stablelightning.model.export_check import check_distribution, check_outputs
from stablelightning.model.export_dropout import DRAWN_DROPOUT, attention, dropout
from stablelightning.module import StableModule
from stablelightning.nn.heads import GaussianHead

X = torch.randn(4, 6)


def model(rate: float = 0.4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(rate), nn.Linear(8, 3))


def loaded(path):
    return torch.export.load(path).module()


def test_the_file_gives_what_the_model_gives_for_any_batch(tmp_path):
    net = model().train()
    exported = export_model(net, X, tmp_path / "net.pt2")
    assert exported.difference <= 1e-5
    assert exported.megabytes > 0
    assert net.training
    program = loaded(tmp_path / "net.pt2")
    for rows in (1, 2, 11):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(program(x), net.eval()(x))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


def test_an_example_of_one_row_does_not_fix_the_batch(tmp_path):
    export_model(model(), X[:1], tmp_path / "net.pt2")
    assert loaded(tmp_path / "net.pt2")(X).shape == (4, 3)


def test_live_dropout_draws_on_every_call_while_norms_stay_in_eval(tmp_path):
    net = model()
    export = export_model(net, X, tmp_path / "net.pt2", mc=True, samples=200)
    assert export.means_apart < 5
    assert export.spread_ratio == pytest.approx(1, abs=0.2)
    program = loaded(tmp_path / "net.pt2")
    buffers = {name: b.clone() for name, b in program.named_buffers()}
    first, second = program(X), program(X)
    assert not torch.equal(first, second)
    assert all(torch.equal(b, buffers[name]) for name, b in program.named_buffers())


class Functional(nn.Module):
    """Dropout that no module shows, behind a flag that does more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.norm(self.layer(x)), 0.3, self.training)
        return (y, y) if self.training else y


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (Functional(), X),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), torch.randn(2, 4, 6)),
        (nn.LSTM(6, 3, 2, dropout=0.4, batch_first=True), torch.randn(2, 4, 6)),
        (StableModule(model(), task="classification"), X),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_can_be_sampled_can_be_exported_live(net, x, tmp_path):
    assert export_model(net, x, tmp_path / "net.pt2", mc=True).spread_ratio > 0
    assert export_model(net, x, tmp_path / "net.pt2").difference <= 1e-5


class Keywords(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": x * scale}


def test_keywords(tmp_path):
    export_model(Keywords(), {"x": X, "scale": torch.tensor(2.0)}, tmp_path / "net.pt2")
    out = loaded(tmp_path / "net.pt2")(x=torch.ones(7, 6), scale=torch.tensor(3.0))["out"]
    assert (out == 3).all()


def test_named_tuples_become_plain_ones(tmp_path):
    net = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), GaussianHead(4, 1)).eval()
    for mc in (False, True):
        export_model(net, X, tmp_path / "net.pt2", mc=mc)
    out = loaded(tmp_path / "net.pt2")(torch.randn(7, 6))
    assert type(out) is tuple
    assert len(out[0]) == 7


class ByRows(nn.Module):
    """Another function for large batches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] < 6 else x * 3


class ByValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x * 3


class Counting(nn.Module):
    """A number of Python's that every call changes, and an export keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("net", [ByRows(), ByValue(), Counting()], ids=lambda n: type(n).__name__)
def test_what_cannot_be_right_is_refused_and_no_file_is_left(net, tmp_path):
    with pytest.raises(ModelError, match="must"):
        export_model(net, X, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch(tmp_path):
    export_model(ByRows(), X, tmp_path / "net.pt2", dynamic_batch=False)
    assert torch.equal(loaded(tmp_path / "net.pt2")(X), 2 * X)


def test_live_without_anything_random(tmp_path):
    with pytest.raises(NothingRandomError, match="add_dropout"):
        export_model(nn.Linear(6, 3), X, tmp_path / "net.pt2", mc=True)


def test_bad_settings(tmp_path):
    with pytest.raises(RecipeError, match=r"end with \.pt2"):
        export_model(model(), X, tmp_path / "net.onnx")
    with pytest.raises(RecipeError, match="samples must be"):
        export_model(model(), X, tmp_path / "net.pt2", samples=1)
    with pytest.raises(ModelError, match=r"nn\.Module"):
        export_model(F.relu, X, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="compiled"):
        export_model(torch.compile(model(), backend="eager"), X, tmp_path / "net.pt2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match=r"net\.pt2 must be written"):
        export_model(model(), X, tmp_path / "net.pt2")


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"net\.pt2 must be written"):
        export_model(model(), X, tmp_path / "file" / "net.pt2")


# ---- the checks themselves ----------------------------------------------------------------------


def test_other_outputs_are_refused_with_the_numbers():
    with pytest.raises(ModelError, match=r"difference of 0\.1"):
        check_outputs(lambda x: [x], lambda x: [x * 1.1], [torch.ones(3)], tolerance=1e-5)
    with pytest.raises(ModelError, match="1 tensors, got 2"):
        check_outputs(lambda x: [x], lambda x: [x, x], [torch.ones(3)], tolerance=1e-5)


def noise(mean: float = 0.0, std: float = 1.0):
    return lambda x: [mean + std * torch.randn(8)]


@pytest.mark.parametrize(
    "exported", [noise(mean=1.0), noise(std=1.5), noise(std=0.6)], ids=["mean", "wider", "narrower"]
)
def test_another_distribution_is_refused(exported):
    with pytest.raises(ModelError, match="distribution"):
        check_distribution(noise(), exported, None, samples=64)


def test_a_distribution_is_accepted_and_a_constant_is_none():
    apart, ratio = check_distribution(noise(), noise(), None, samples=64)
    assert apart < 3
    assert 0.7 < ratio < 1.4
    with pytest.raises(NothingRandomError, match="64 calls gave"):
        check_distribution(noise(), lambda x: [torch.ones(8)], None, samples=64)


# ---- dropout as random numbers ------------------------------------------------------------------


def test_drawn_dropout_keeps_the_mean_and_the_share():
    x = torch.ones(100_000)
    kept = dropout(x, 0.3, train=True)
    assert kept.mean() == pytest.approx(1, abs=0.02)
    assert (kept == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert not dropout(x, 1.0, train=True).any()


@pytest.mark.parametrize("mask", [None, torch.randn(3, 5), torch.rand(3, 5) > 0.4, "causal"])
def test_attention_is_torchs_own(mask):
    q, k, v = torch.randn(2, 4, 3, 6), torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    settings = {"is_causal": True} if mask == "causal" else {"attn_mask": mask}
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        mask[:, 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3, **settings)
    torch.testing.assert_close(attention(q, k, v, scale=0.3, **settings), expected)


def test_attention_of_grouped_queries():
    q, k = torch.randn(2, 4, 3, 6), torch.randn(2, 2, 3, 6)
    expected = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, k, enable_gqa=True), expected)


def test_no_dropout_is_left_in_a_decomposed_program(tmp_path):
    export_model(model(), X, tmp_path / "net.pt2", mc=True)
    program = torch.export.load(tmp_path / "net.pt2").run_decompositions(DRAWN_DROPOUT)
    names = [str(node.target) for node in program.graph.nodes]
    assert not any("dropout" in name for name in names)
    assert any("rand_like" in name for name in names)


# ---- ONNX ---------------------------------------------------------------------------------------

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'stablelightning[onnx]'",
)


@needs_onnx
@pytest.mark.parametrize("mc", [False, True])
def test_onnx(mc, tmp_path):
    import onnxruntime

    net = model()
    exported = export_onnx(net, X, tmp_path / "net.onnx", mc=mc)
    session = onnxruntime.InferenceSession(
        tmp_path / "net.onnx", providers=["CPUExecutionProvider"]
    )
    (name,) = [given.name for given in session.get_inputs()]
    first, second = (session.run(None, {name: X.repeat(3, 1).numpy()})[0] for _ in range(2))
    assert first.shape == (12, 3)
    assert (first == second).all() != mc
    assert (exported.spread_ratio is not None) == mc
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@needs_onnx
def test_onnx_refuses_what_it_would_silently_lose(tmp_path):
    """The dropout inside of an LSTM: ONNX's has none."""
    net = nn.LSTM(6, 3, 2, dropout=0.4, batch_first=True)
    with pytest.raises(NothingRandomError, match="gave the same numbers"):
        export_onnx(net, torch.randn(2, 4, 6), tmp_path / "net.onnx", mc=True)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="onnx is installed")
def test_onnx_says_what_it_needs(tmp_path):
    with pytest.raises(MissingPackageError, match=r"stablelightning\[onnx\]"):
        export_onnx(model(), X, tmp_path / "net.onnx")
