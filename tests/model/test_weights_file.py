"""Weights files: what is read, what fits, what is refused, and that nothing is written half."""

import copy
import io
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from stablelightning.errors import CheckpointError, ModelError, RecipeError
from stablelightning.model.defaults import default_parameters
from stablelightning.model.loaded import loaded_parameters
from stablelightning.model.weights_file import WeightsFile, load_file, load_weights, read_weights
from stablelightning.model.weights_report import LoadReport, Reshaped

safetensors = pytest.importorskip("safetensors.torch")


class Net(nn.Module):
    """A stem, two blocks with norms, a head."""

    def __init__(self, outputs=5, width=8, blocks=2):
        super().__init__()
        self.stem = nn.Linear(6, width)

        def block():
            return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())

        self.body = nn.Sequential(*(block() for _ in range(blocks)))
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def trained(**settings):
    """Weights and running statistics that no constructor leaves."""
    net = Net(**settings)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else 7)
    return net


def below_head(net):
    return {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("head")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def source():
    return trained()


def saved(folder: Path, state, name="net.pt") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.save_file(state, path)
    else:
        torch.save(state, path)
    return path


# ---- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "net.bin", "net"])
def test_every_value_comes_back(tmp_path, source, name):
    net = Net()
    report = load_weights(net, saved(tmp_path, dict(source.state_dict()), name))
    assert same(net.state_dict(), source.state_dict())
    assert (report.share, report.missing, report.unexpected, report.reshaped) == (1.0, (), (), ())
    assert set(report.loaded) == set(source.state_dict())
    assert report.whole


def test_the_content_decides_not_the_suffix(tmp_path, source):
    path = saved(tmp_path, dict(source.state_dict()), "a.safetensors").rename(tmp_path / "a.pth")
    assert read_weights(path).tensors.keys() == source.state_dict().keys()
    path = saved(tmp_path, source.state_dict(), "b.pt").rename(tmp_path / "b.safetensors")
    assert read_weights(path).tensors.keys() == source.state_dict().keys()


def test_metadata_is_read(tmp_path):
    safetensors.save_file({"a": torch.ones(2)}, tmp_path / "a", metadata={"objective": "rotation"})
    assert read_weights(tmp_path / "a").metadata == {"objective": "rotation"}


@pytest.mark.parametrize("section", ["state_dict", "model", "model_state_dict"])
def test_checkpoints_keep_weights_in_a_section(tmp_path, source, section):
    path = saved(tmp_path, {"epoch": 3, section: source.state_dict(), "optimizer": {"state": {}}})
    net = Net()
    report = load_weights(net, path)
    assert same(net.state_dict(), source.state_dict())
    assert f"read from '{section}' of the checkpoint" in report.notes


@pytest.mark.parametrize("legacy", [False, True])
def test_the_older_format_of_torch_is_read(tmp_path, source, legacy):
    path = tmp_path / "a.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert load_weights(Net(), path).share == 1.0


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "network.", "_orig_mod.", "backbone.", "a.b.", "model.module."]
)
def test_what_wraps_the_names_is_found_and_told(tmp_path, source, prefix):
    path = saved(tmp_path, {f"{prefix}{k}": v for k, v in source.state_dict().items()})
    net = Net()
    report = load_weights(net, path)
    assert same(net.state_dict(), source.state_dict())
    assert prefix.replace("_orig_mod.", "") == report.prefix
    assert any(prefix in note for note in report.notes)


def test_a_model_that_wraps_the_network_takes_its_weights(tmp_path, source):
    outer = nn.Module()
    outer.network, outer.other = Net(), nn.Linear(50, 50)
    other = copy.deepcopy(outer.other.state_dict())
    report = load_weights(outer, saved(tmp_path, source.state_dict()))
    assert same(outer.network.state_dict(), source.state_dict())
    assert same(outer.other.state_dict(), other)
    assert report.share == 1.0
    assert report.missing == ()
    assert report.notes == ("it went into network",)


def test_both_sides_may_be_wrapped_differently(tmp_path, source):
    outer = nn.Module()
    outer.backbone = Net()
    state = {f"network.{k}": v for k, v in source.state_dict().items()}
    report = load_weights(outer, saved(tmp_path, {**state, "decoder.weight": torch.ones(9, 9)}))
    assert same(outer.backbone.state_dict(), source.state_dict())
    assert report.unexpected == ("decoder.weight",)


def test_compiled_submodules_are_seen_through(tmp_path, source):
    state = {k.replace("body.", "body._orig_mod."): v for k, v in source.state_dict().items()}
    net = Net()
    load_weights(net, saved(tmp_path, state))
    assert same(net.state_dict(), source.state_dict())
    outer = Net()
    outer.body = torch.compile(outer.body)
    load_weights(outer, saved(tmp_path, source.state_dict()))
    mean = dict(outer.named_buffers())["body._orig_mod.0.1.running_mean"]
    assert torch.equal(mean, source.body[0][1].running_mean)
    assert loaded_parameters(outer) == {name for name, _ in outer.named_parameters()}


# ---- what fits --------------------------------------------------------------------------------


def test_a_head_of_another_size_is_listed_and_left(tmp_path, source):
    net = Net(outputs=3)
    head = copy.deepcopy(net.head.state_dict())
    report = load_weights(net, saved(tmp_path, source.state_dict()))
    assert same(below_head(net), below_head(source))
    assert same(net.head.state_dict(), head)
    assert [r.name for r in report.reshaped] == ["head.weight", "head.bias"]
    assert report.reshaped[0] == ("head.weight", "5 x 8", "3 x 8")
    assert report.share == 1.0
    assert report.whole
    assert "head.weight: 5 x 8 in the file, 3 x 8 in the model (head)" in str(report)


def test_a_file_without_a_head_is_whole(tmp_path, source):
    report = load_weights(Net(), saved(tmp_path, below_head(source)))
    assert report.missing == ("head.weight", "head.bias")
    assert report.whole


def test_every_key_is_reported(tmp_path, source):
    state = dict(source.state_dict())
    del state["stem.bias"]
    state |= {"extra.weight": torch.ones(3), "body.1.0.bias": torch.ones(9)}
    net = Net()
    before = copy.deepcopy(net.state_dict())
    report = load_weights(net, saved(tmp_path, state), least_share=0.5)
    assert report.missing == ("stem.bias",)
    assert report.unexpected == ("extra.weight",)
    assert report.reshaped == (("body.1.0.bias", "9", "8"),)
    assert 0.8 < report.share < 1.0
    for key in ("stem.bias", "extra.weight", "body.1.0.bias"):
        assert key in str(report)
        assert key in report.summary()
    for key in ("stem.bias", "body.1.0.bias"):
        assert torch.equal(net.state_dict()[key], before[key])
    assert not report.whole


def test_half_precision_is_cast_and_told(tmp_path, source):
    state = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    net = Net()
    report = load_weights(net, saved(tmp_path, state))
    assert net.stem.weight.dtype == torch.float32
    assert torch.equal(net.stem.weight, source.stem.weight.half().float())
    assert "from torch.float16 to torch.float32" in " ".join(report.notes)


def test_running_statistics_and_counters_come_along(tmp_path, source):
    net = Net()
    load_weights(net, saved(tmp_path, source.state_dict(), "a.pt"))
    assert net.body[0][1].num_batches_tracked == 7
    assert torch.equal(net.body[1][1].running_var, source.body[1][1].running_var)


def test_files_from_before_batches_were_counted_are_whole(tmp_path, source):
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("tracked")}
    net = Net()
    report = load_weights(net, saved(tmp_path, state))
    assert report.missing == ()
    assert report.whole
    assert torch.equal(net.body[1][1].running_var, source.body[1][1].running_var)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 9, bias=False)
        self.out.weight = self.embedding.weight


def test_a_tensor_of_two_names_needs_one_in_the_file(tmp_path):
    source, net = Tied(), Tied()
    path = tmp_path / "tied.safetensors"
    safetensors.save_model(source, str(path))  # keeps one name of the two
    assert len(read_weights(path).tensors) == 3
    report = load_weights(net, path)
    assert torch.equal(net.out.weight, source.embedding.weight)
    assert report.missing == ()
    assert report.share == 1.0
    assert net.out.weight is net.embedding.weight


def test_two_values_for_one_tensor_are_told(tmp_path):
    net = Tied()
    state = dict(net.state_dict()) | {"out.weight": torch.ones(9, 4)}
    report = load_weights(net, saved(tmp_path, state))
    assert any("embedding.weight and out.weight are one tensor" in note for note in report.notes)


def test_lazy_layers_take_their_shape_from_the_file(tmp_path):
    source = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    load_weights(net, saved(tmp_path, source.state_dict()))
    assert torch.equal(net[0].weight, source[0].weight)


def test_flags_and_identity_stay(tmp_path, source):
    net = Net().eval()
    net.stem.weight.requires_grad_(False)
    parameters = list(net.parameters())
    load_weights(net, saved(tmp_path, source.state_dict()))
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert not net.training
    assert not net.stem.weight.requires_grad


# ---- what is refused --------------------------------------------------------------------------


class Marker:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


def written_by(path, content, how):
    if how == "torch.save":
        torch.save(content, path)
    elif how == "older torch.save":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("how", ["torch.save", "older torch.save", "pickle"])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_code_in_a_file_is_refused_and_never_executed(tmp_path, source, how, name):
    marker = tmp_path / "marker"
    content = {**source.state_dict(), "hook": Marker(marker)}
    path = written_by(tmp_path / name, content, how)
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=r"which could run code and was not"):
        load_weights(net, path)
    assert not marker.exists()
    assert same(net.state_dict(), before)
    # The file would have done it: it is no dud.
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert marker.exists()


def test_the_object_is_named(tmp_path):
    path = written_by(tmp_path / "a.pt", {"w": Marker(tmp_path / "m")}, "torch.save")
    with pytest.raises(CheckpointError, match=r"a\.pt holds \w+, which could run code"):
        read_weights(path)


def test_a_whole_pickled_model_is_refused(tmp_path, source):
    with pytest.raises(CheckpointError, match=r"holds .*Net, which could run code"):
        read_weights(saved(tmp_path, source))


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, source, name, share):
    path = saved(tmp_path, dict(source.state_dict()), name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match="cut off"):
        load_weights(net, path)
    assert same(net.state_dict(), before)


def test_a_truncated_older_file_is_refused(tmp_path, source):
    path = written_by(tmp_path / "a.pt", source.state_dict(), "older torch.save")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(CheckpointError, match="cut off"):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1", b"\x80"],
)
def test_what_is_no_weights_file_is_refused(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_weights(tmp_path / "net.pt")
    assert "\n" not in str(refused.value)


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "net.pt").touch()
    with pytest.raises(CheckpointError, match=r"net\.pt is empty"):
        read_weights(tmp_path / "net.pt")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_plain_pickle_is_not_called_cut_off(tmp_path, protocol):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"w": Marker(tmp_path / "marker")}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"plain pickle, which could run code") as refused:
        read_weights(path)
    assert "cut off" not in str(refused.value)
    assert not (tmp_path / "marker").exists()


def test_what_torch_says_of_a_truncated_file_ends_with_a_sentence(tmp_path, source):
    path = saved(tmp_path, dict(source.state_dict()))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CheckpointError, match=r"central directory\); it may be cut off"):
        read_weights(path)


def test_another_model_is_refused_by_its_own_name(tmp_path):
    """A norm of the file fits any norm of the model by the count of its batches alone."""
    file = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 2))
    state = {name.replace("1.", "bn1."): v for name, v in file.state_dict().items()}
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match="of Sequential below its head"):
        load_weights(net, saved(tmp_path, state))


def test_a_lying_header_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 9999]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 36)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "a")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, [1, 2], 3])
def test_a_file_without_weights_is_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match="must hold named tensors"):
        read_weights(saved(tmp_path, content))


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match="check the path"):
            read_weights(path)


def test_sparse_weights_are_refused(tmp_path):
    path = saved(tmp_path, {"weight": torch.eye(4).to_sparse()})
    with pytest.raises(CheckpointError, match="load_sparse"):
        read_weights(path)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5)).state_dict(),
        lambda: trained(width=16).state_dict(),
        lambda: trained(blocks=5).state_dict(),
        lambda: trained(blocks=1).state_dict(),
    ],
    ids=["another network", "wider", "deeper", "shallower"],
)
def test_weights_of_another_model_are_refused(tmp_path, other):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match="must fit 90% of the model") as refused:
        load_weights(net, saved(tmp_path, dict(other())))
    assert "\n" not in str(refused.value)
    assert same(net.state_dict(), before)
    assert loaded_parameters(net) == set()


def test_a_partial_load_is_taken_when_asked_for(tmp_path):
    net, source = Net(blocks=3), trained(blocks=2)
    report = load_weights(net, saved(tmp_path, source.state_dict()), least_share=0.5)
    assert torch.equal(net.body[1][0].weight, source.body[1][0].weight)
    assert report.missing[0] == "body.2.0.weight"
    assert 0.5 < report.share < 0.9


def test_not_one_matching_key_is_refused_whatever_the_share(tmp_path):
    with pytest.raises(CheckpointError, match="fits 0% of Net"):
        load_weights(Net(), saved(tmp_path, {"x.y": torch.ones(3)}), least_share=0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, source, bad):
    state = {k: v.clone() for k, v in source.state_dict().items()}
    state["body.1.0.weight"][0, 0] = bad
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=r"body\.1\.0\.weight .* not finite"):
        load_weights(net, saved(tmp_path, state))
    assert same(net.state_dict(), before)


def test_numbers_too_large_for_the_model_are_refused(tmp_path, source):
    state = {k: v.clone() for k, v in source.state_dict().items()}
    state["stem.weight"][0, 0] = 1e6
    with pytest.raises(CheckpointError, match="too large for float16"):
        load_weights(Net().half(), saved(tmp_path, state))


def test_integers_for_floating_point_do_not_fit(tmp_path, source):
    state = dict(source.state_dict()) | {"stem.bias": torch.ones(8, dtype=torch.int8)}
    report = load_weights(Net(), saved(tmp_path, state), least_share=0.5)
    assert report.reshaped == (("stem.bias", "torch.int8", "torch.float32"),)


def test_masks_of_infinity_in_buffers_are_fine(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net.register_buffer("mask", torch.full((3, 3), -torch.inf))
    assert load_weights(net, saved(tmp_path, net.state_dict())).share == 1.0


def test_a_model_without_weights_or_memory_is_refused(tmp_path, source):
    path = saved(tmp_path, source.state_dict())
    with pytest.raises(ModelError, match="has none"):
        load_weights(nn.ReLU(), path)
    with torch.device("meta"):
        net = Net()
    with pytest.raises(ModelError, match="meta device"):
        load_weights(net, path)


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", None])
def test_a_share_is_a_share(tmp_path, source, share):
    with pytest.raises(RecipeError, match="least_share must be a share"):
        load_weights(Net(), saved(tmp_path, source.state_dict()), least_share=share)


# ---- what is left behind ----------------------------------------------------------------------


def test_what_was_loaded_is_known_as_loaded_even_if_it_looks_fresh():
    net = Net()
    load_file(net, WeightsFile("fresh.pt", dict(Net().state_dict())))
    verdicts = default_parameters(net)
    assert not any(verdict.default for verdict in verdicts.values())
    assert verdicts["body.0.1.weight"].reason == "loaded from a file"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_know_it_too(again):
    net = Net()
    load_file(net, WeightsFile("fresh.pt", dict(Net().state_dict())))
    assert loaded_parameters(again(net)) == {name for name, _ in net.named_parameters()}


def test_a_model_that_is_compiled_afterwards_knows_it():
    net = Net()
    load_file(net, WeightsFile("fresh.pt", dict(Net().state_dict())))
    assert len(loaded_parameters(torch.compile(net))) == len(list(net.parameters()))


def test_a_layer_drawn_since_is_fresh_again():
    net = Net()
    load_file(net, WeightsFile("fresh.pt", dict(Net().state_dict())))
    net.head = nn.Linear(8, 40)
    assert {n for n, v in default_parameters(net).items() if v.default} == {
        "head.weight",
        "head.bias",
    }


def test_the_state_dict_and_the_file_hold_no_trace_of_it():
    net = Net()
    names = list(net.state_dict())
    load_file(net, WeightsFile("fresh.pt", dict(Net().state_dict())))
    assert list(net.state_dict()) == names
    torch.save(net.state_dict(), io.BytesIO())


def test_a_head_of_its_own_is_no_fault_of_the_file():
    report = LoadReport(
        "a.pt",
        "Net",
        ("w",),
        ("fc.bias",),
        (),
        (Reshaped("fc.weight", "9 x 2", "3 x 2"),),
        share=1.0,
        head=("fc.weight", "fc.bias"),
    )
    assert (
        report.summary() == "a.pt fits 100% of Net below its head (the head keeps its own weights)"
    )
    assert "fc.bias (head)" in str(report)
