"""Backbones on disk: the same values under the same names, and what is known beside them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from stablelightning.errors import ModelError, OutputError
from stablelightning.model.backbone_file import FORMAT, save_backbone
from stablelightning.model.preprocessing import Preprocessing
from stablelightning.nn import ConvNet


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_every_parameter_and_buffer_comes_back_to_the_bit(tmp_path):
    net = ConvNet(1, 3, channels=[4])
    path = save_backbone(net, tmp_path / "net.safetensors")
    read = load_file(path)
    assert read.keys() == net.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in net.state_dict().items())
    ConvNet(1, 3, channels=[4]).load_state_dict(read)


def test_an_old_file_is_replaced_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "deep" / "net.safetensors"
    save_backbone(nn.Linear(2, 2), path)
    save_backbone(nn.Linear(3, 1), path)
    assert load_file(path)["weight"].shape == (1, 3)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_metadata_says_what_it_is(tmp_path):
    net = nn.Linear(2, 2)
    net.preprocessing = Preprocessing((0.5,), (0.25,), image_size=32)
    architecture = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2}}
    path = save_backbone(
        net, tmp_path / "a.safetensors", architecture=architecture, objective="rotation", head="fc"
    )
    metadata = metadata_of(path)
    assert metadata["format"] == FORMAT
    assert metadata["objective"] == "rotation"
    assert metadata["head"] == "fc"
    assert json.loads(metadata["architecture"]) == architecture
    assert Preprocessing(**json.loads(metadata["preprocessing"])) == net.preprocessing


def test_what_is_not_known_is_not_in_the_metadata(tmp_path):
    metadata = metadata_of(save_backbone(nn.Linear(2, 2), tmp_path / "a.safetensors"))
    assert set(metadata) == {"format", "stablelightning", "torch"}


def test_tied_and_strided_weights_are_written_whole(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    net[1].bias = nn.Parameter(torch.arange(6.0)[::2])
    read = load_file(save_backbone(net, tmp_path / "a.safetensors"))
    assert torch.equal(read["0.weight"], read["1.weight"])
    assert read["1.bias"].tolist() == [0, 2, 4]


def test_views_of_one_memory_are_written_each_by_itself(tmp_path):
    both = torch.arange(4.0)
    state = {"a": both[:2], "b": both[2:]}
    read = load_file(save_backbone(nn.Identity(), tmp_path / "a.safetensors", state=state))
    assert (read["a"].tolist(), read["b"].tolist()) == ([0, 1], [2, 3])


def test_a_compiled_network_keeps_its_clean_names(tmp_path):
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    read = load_file(save_backbone(compiled, tmp_path / "a.safetensors"))
    assert set(read) == {"0.weight", "0.bias"}


def test_given_weights_take_the_place_of_the_networks_own(tmp_path):
    net = nn.Linear(1, 1, bias=False)
    state = {"weight": torch.full((1, 1), 7.0)}
    assert load_file(save_backbone(net, tmp_path / "a.safetensors", state=state))["weight"] == 7


@pytest.mark.parametrize(
    "net", [nn.LazyLinear(3), nn.Linear(2, 2, device="meta")], ids=["lazy", "meta"]
)
def test_weights_without_values_are_refused(tmp_path, net):
    with pytest.raises(ModelError, match="has none yet"):
        save_backbone(net, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_tensor_is_refused(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"step": 1}

    with pytest.raises(ModelError, match="plain tensors only, got dict for '_extra_state'"):
        save_backbone(Odd(1, 1), tmp_path / "a.safetensors")


def test_an_architecture_of_objects_is_refused(tmp_path):
    with pytest.raises(ModelError, match="plain types"):
        save_backbone(nn.Linear(1, 1), tmp_path / "a", architecture={"class_path": nn.Linear})


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_backbone(nn.Linear(1, 1), tmp_path / "file" / "a.safetensors")
