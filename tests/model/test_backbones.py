"""Backbones by name: names, weights from files, new heads, and networks made again without them."""

import copy
import json
import pickle
import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from stablelightning.errors import CheckpointError, ModelError, RecipeError, StableLightningWarning
from stablelightning.model.architecture import architecture_of, without_files
from stablelightning.model.backbone_file import save_backbone
from stablelightning.model.backbones import backbone, without_weights
from stablelightning.model.dropout import added_dropouts
from stablelightning.model.initialize import initialize
from stablelightning.model.loaded import loaded_parameters
from stablelightning.model.preprocessing import Preprocessing, preprocessing_of
from stablelightning.nn import MLP

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

#: A vision transformer of timm with 5000 parameters.
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
TINY_VIT = "timm/vit_tiny_patch16_224"
OURS = "stablelightning.model.backbones.backbone"


def tiny(**changes):
    return backbone(TINY_VIT, weights=None, settings={**TINY, **changes})


def body(net):
    return {k: v.clone() for k, v in net.state_dict().items() if not k.startswith(("head", "fc"))}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def resnet():
    net = torchvision.models.resnet18()
    with torch.no_grad():  # as it is after training: norms have run
        for name, value in net.named_buffers():
            value.fill_(3) if name.endswith("tracked") else value.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def resnet_file(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    return str(path)


# ---- names ------------------------------------------------------------------------------------


def test_the_library_makes_its_own_model():
    for name, home in (
        ("resnet18", "torchvision.models.resnet"),
        ("torchvision/resnet18", "torchvision.models.resnet"),
        ("timm/resnet18", "timm.models.resnet"),
        ("vit_tiny_patch16_224", "timm.models.vision_transformer"),
        ("vit_tiny_patch16_224.augreg_in21k", "timm.models.vision_transformer"),
    ):
        settings = TINY if "vit" in name else None
        assert type(backbone(name, weights=None, settings=settings)).__module__ == home


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("ResNet-18", "resnet18"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("vit_tiny_patch16_225", "vit_tiny_patch16_224"),
        ("timm/resnett18", "resnet18"),
        ("vit_tiny_patch16_224.nobody", "vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(name, nearest):
    with pytest.raises(RecipeError, match="did you mean") as refused:
        backbone(name)
    assert nearest in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["qqqqqqqqqqqq", "no/such/file.pth", "hub/resnet18", ""])
def test_what_is_like_nothing_is_refused_without_a_guess(name):
    with pytest.raises(RecipeError, match="a file that exists") as refused:
        backbone(name)
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "raft_small"])
def test_models_without_a_classifier_are_refused(name):
    with pytest.raises(RecipeError, match="must end in a classifier"):
        backbone(name, weights=None)


@pytest.mark.parametrize(
    "settings",
    [{"num_classes": 3}, {"pretrained": True}, {"weights": "DEFAULT"}, {"checkpoint_path": "a"}],
)
def test_heads_and_weights_are_no_settings(settings):
    with pytest.raises(RecipeError, match="num_outputs"):
        backbone("resnet18", settings=settings)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(RecipeError, match=r"settings must be arguments of .*no_such"):
        backbone(name, weights=None, settings={"no_such": 3})


def test_what_belongs_to_a_new_head_needs_one():
    with pytest.raises(RecipeError, match="set num_outputs"):
        backbone("resnet18", weights=None, keep_layers=2)


def test_dropout_goes_before_the_head_that_is_there():
    net = backbone("timm/test_resnet", weights=None, dropout=0.3)
    assert [(name, d.p) for name, d in added_dropouts(net).items()] == [("fc.added_dropout", 0.3)]
    assert net.fc.out_features == 1000


# ---- weights from a file ----------------------------------------------------------------------


def test_a_file_and_a_new_head(resnet, resnet_file):
    net = backbone("resnet18", weights=resnet_file, num_outputs=3, dropout=0.2)
    assert same(body(net), body(resnet))
    assert net.fc.weight.shape == (3, 512)
    assert list(net.state_dict()) == list(resnet.state_dict())
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_initializing_leaves_what_was_loaded(resnet, resnet_file):
    net = backbone("resnet18", weights=resnet_file, num_outputs=3)
    head = net.fc.weight.clone()
    initialize(net, torch.randn(4, 3, 32, 32))
    assert same(body(net), body(resnet))
    assert torch.equal(net.fc.weight, head)  # drawn by the same rules already
    net.fc = nn.Linear(512, 30)
    fresh = net.fc.weight.clone()
    report = initialize(net, torch.randn(4, 3, 32, 32))
    assert same(body(net), body(resnet))
    assert not torch.equal(net.fc.weight, fresh)
    assert report["fc"].distribution == "Glorot uniform"


def test_initializing_leaves_loaded_weights_that_look_fresh(tmp_path):
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    net = backbone("resnet18", weights=str(tmp_path / "a.pth"), num_outputs=3)
    initialize(net, torch.randn(4, 3, 32, 32))
    assert same(body(net), body(source))  # the last norm of each branch is not set to zero


def test_positions_of_another_image_size_are_interpolated(tmp_path):
    source = tiny()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    net = backbone(TINY_VIT, weights=str(tmp_path / "a.pth"), settings={**TINY, "img_size": 64})
    assert net.pos_embed.shape == (1, 65, 12)
    assert torch.equal(net.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(net.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_torchvisions_positions_are_interpolated_too(tmp_path):
    settings = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    kind = torchvision.models.VisionTransformer
    source = kind(image_size=32, **settings)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    net = backbone(kind(image_size=64, **settings), weights=str(tmp_path / "a.pth"))
    assert net.encoder.pos_embedding.shape == (1, 65, 8)
    assert torch.equal(net.conv_proj.weight, source.conv_proj.weight)


def test_colours_become_one_channel(tmp_path):
    source = tiny()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    net = backbone(TINY_VIT, weights=str(tmp_path / "a.pth"), settings={**TINY, "in_chans": 1})
    kernel = source.patch_embed.proj.weight.sum(1, keepdim=True)
    assert torch.allclose(net.patch_embed.proj.weight, kernel, atol=1e-6)


def test_a_partial_load_is_told(tmp_path):
    source = tiny()
    state = dict(source.state_dict())
    del state["norm.weight"]
    torch.save({**state, "more": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.warns(StableLightningWarning, match=r"missing: norm\.weight; unexpected: more"):
        backbone(TINY_VIT, weights=str(tmp_path / "a.pth"), settings=TINY)


def test_weights_of_another_model_are_refused(resnet_file, tmp_path):
    for name in ("resnet34", "timm/resnet34", "mobilenet_v3_small"):
        with pytest.raises(CheckpointError, match=r"resnet18\.pth fits \d+% of \w+ below its head"):
            backbone(name, weights=resnet_file)
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "34.pth")
    with pytest.raises(CheckpointError, match=r"34\.pth fits 100% of ResNet .*unexpected"):
        backbone("resnet18", weights=str(tmp_path / "34.pth"))


def test_torchvisions_resnet_goes_into_timms(resnet, resnet_file):
    net = backbone("timm/resnet18", weights=resnet_file, num_outputs=3)
    assert torch.equal(net.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


@pytest.mark.parametrize("weights", ["imagenet", "no_such.pth", ""])
def test_weights_that_are_nowhere_are_refused(weights):
    with pytest.raises(CheckpointError, match=r"IMAGENET1K_V1, .*or a file that exists, got"):
        backbone("resnet18", weights=weights)


# ---- weights from the library -----------------------------------------------------------------


def fetched(monkeypatch, state):
    asked = []

    def fetch(url, *args, **kwargs):
        asked.append(url)
        return dict(state)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    return asked


def test_pretrained_weights_are_torchvisions(monkeypatch, resnet):
    asked = fetched(monkeypatch, resnet.state_dict())
    net = backbone("resnet18", num_outputs=3)
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert same(body(net), body(resnet))
    assert loaded_parameters(net) >= {name for name in body(net) if "weight" in name}
    assert preprocessing_of(net).mean == (0.485, 0.456, 0.406)


def test_other_weights_have_a_name(monkeypatch):
    asked = fetched(monkeypatch, torchvision.models.mobilenet_v3_large().state_dict())
    net = backbone("mobilenet_v3_large", weights="IMAGENET1K_V1")
    assert "mobilenet_v3_large-8738ca79" in asked[0]
    assert net.preprocessing.resize_size == 256
    net = backbone("mobilenet_v3_large", weights="IMAGENET1K_V2")
    assert "mobilenet_v3_large-5c1a4163" in asked[1]
    assert net.preprocessing.resize_size == 232


def test_pretrained_weights_are_timms(monkeypatch):
    made = []

    def create(name, *, pretrained, **settings):
        made.append((name, pretrained))
        return real(name, pretrained=False, **settings)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("stablelightning.model.libraries._refuse_without_network", lambda _: None)
    net = backbone(f"{TINY_VIT}.augreg_in21k", num_outputs=3, settings=TINY)
    assert made[-1] == ("vit_tiny_patch16_224.augreg_in21k", True)
    assert "blocks.0.attn.qkv.weight" in loaded_parameters(net)
    assert "head.weight" not in loaded_parameters(net)


def no_network(*_args, **_kwargs):
    raise URLError("no route to host")


def test_without_a_network_the_address_and_the_way_around_are_told(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(CheckpointError, match=r"resnet18-f37072fd\.pth.*weights=ITS_PATH") as error:
        backbone("resnet18")
    assert "\n" not in str(error.value)


def test_timm_says_so_at_once(monkeypatch):
    def unknown(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("stablelightning.model.libraries.getproxies", dict)
    with pytest.raises(CheckpointError, match=r"huggingface\.co/timm/vit_tiny.*weights=ITS_PATH"):
        backbone(f"{TINY_VIT}.augreg_in21k_ft_in1k", settings=TINY)


def test_a_model_that_nobody_published_weights_of():
    with pytest.raises(RecipeError, match="nobody published any of timm/vit_base_patch32_plus"):
        backbone("timm/vit_base_patch32_plus_256")


def test_what_weights_need_is_there_without_them():
    with without_weights():
        net = backbone("googlenet", num_outputs=3)
    assert net.transform_input
    assert net.aux1 is None
    assert not backbone("googlenet", weights=None).transform_input


# ---- heads ------------------------------------------------------------------------------------


def test_a_model_without_classes_gets_a_head():
    net = backbone("timm/vit_small_patch14_dinov2", weights=None, num_outputs=3, settings={**TINY})
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_dropout_before_the_head_is_what_monte_carlo_dropout_samples():
    net = backbone(TINY_VIT, weights=None, num_outputs=3, dropout=0.5, settings=TINY).train()
    x = torch.randn(2, 3, 32, 32)
    features = [net.forward_features(x) for _ in range(2)]
    assert torch.equal(*features)
    assert not torch.equal(net(x), net(x))


def test_layers_above_the_kept_ones_are_drawn_anew(resnet, resnet_file):
    net = backbone("resnet18", weights=resnet_file, num_outputs=3, keep_layers=3)
    assert torch.equal(net.layer1[1].conv2.weight, resnet.layer1[1].conv2.weight)
    assert not torch.equal(net.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)
    with pytest.raises(RecipeError, match="keep_layers must be at most 9"):
        backbone("resnet18", weights=None, num_outputs=3, keep_layers=10)


# ---- one's own networks and files -------------------------------------------------------------


def test_a_network_of_ones_own_takes_weights_and_a_head(tmp_path):
    source = MLP(4, 6, hidden=[5])
    path = save_backbone(source, tmp_path / "a.safetensors")
    net = backbone(MLP(4, 9, hidden=[5]), weights=str(path), num_outputs=3)
    assert torch.equal(next(net.parameters()), next(source.parameters()))
    assert net(torch.zeros(2, 4)).shape == (2, 3)
    with pytest.raises(RecipeError, match="must be a file or null"):
        backbone(MLP(4, 9))
    with pytest.raises(ModelError, match="a name, a path or a module"):
        backbone(3)
    with pytest.raises(RecipeError, match="made by its name"):
        backbone(MLP(4, 9), weights=None, settings={"a": 1})


def described(path, architecture, network=None):
    return str(save_backbone(network or MLP(4, 6, hidden=[5]), path, architecture=architecture))


MLP_HERE = {
    "class_path": "stablelightning.nn.MLP",
    "init_args": {
        "in_features": 4,
        "out_features": 6,
        "hidden": [5],
        "activation": {"class_path": "torch.nn.GELU"},
    },
}


@pytest.mark.parametrize("weights", [3, True, ["a.pth"]])
def test_weights_of_another_kind_are_refused_in_words(weights):
    with pytest.raises(CheckpointError, match="a file that exists, got"):
        backbone("resnet18", weights=weights)


def test_a_path_is_as_good_as_its_text(tmp_path):
    source = tiny()
    said = {"class_path": OURS, "init_args": {"name": TINY_VIT, "settings": TINY}}
    path = described(tmp_path / "a.safetensors", said, source)
    assert same(body(backbone(Path(path))), body(source))


def test_a_file_that_says_what_it_is(tmp_path):
    source = MLP(4, 6, hidden=[5], activation=nn.GELU)
    source.preprocessing = Preprocessing((0.5,), (0.2,), 8)
    path = described(tmp_path / "a.safetensors", MLP_HERE, source)
    net = backbone(path)
    assert same(net.state_dict(), source.state_dict())
    assert any(isinstance(module, nn.GELU) for module in net.modules())
    assert net.preprocessing == source.preprocessing
    fresh = backbone(path, weights=None, num_outputs=2)
    assert not torch.equal(next(fresh.parameters()), next(source.parameters()))
    assert fresh(torch.zeros(1, 4)).shape == (1, 2)


def test_a_file_of_a_library_model(tmp_path):
    arguments = {"name": TINY_VIT, "num_outputs": 5, "weights": "pretrained", "settings": TINY}
    source = tiny()
    said = {"class_path": OURS, "init_args": arguments}
    path = described(tmp_path / "a.safetensors", said, source)
    net = backbone(path, num_outputs=2)
    assert same(body(net), body(source))
    assert net.head.out_features == 2


@pytest.mark.parametrize(
    "said",
    [
        {"class_path": "os.system", "init_args": {"command": "touch marker"}},
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}},
        {"class_path": "stablelightning.nn.nothing"},
        {"class_path": "stablelightning.nn.MLP", "init_args": {"activation": "os.system"}},
        {"class_path": OURS, "init_args": {"name": {"class_path": "os.system"}}},
        {"class_path": OURS, "init_args": {"weights": "resnet18"}},
    ],
)
def test_a_file_does_not_choose_what_is_called(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    path = described(tmp_path / "a.safetensors", said)
    with pytest.raises(CheckpointError, match="not called for it") as refused:
        backbone(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match="not called for it"):
        without_files({"class_path": OURS, "init_args": {"name": path}})
    assert not (tmp_path / "marker").exists()


def test_a_file_that_says_nonsense(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    for text in ("no json", "[]", '{"init_args": {}}', json.dumps({"class_path": 3})):
        metadata = {"architecture": text}
        safetensors.save_file({"a": torch.ones(1)}, tmp_path / "a", metadata=metadata)
        with pytest.raises(CheckpointError) as refused:
            architecture_of(str(tmp_path / "a"))
        assert "\n" not in str(refused.value)


def test_a_file_that_does_not_say_what_it_is(tmp_path, resnet_file):
    with pytest.raises(CheckpointError, match="must say what it is"):
        backbone(resnet_file)
    assert architecture_of(resnet_file) is None


def test_a_description_can_do_without_the_file(tmp_path):
    path = described(tmp_path / "a.safetensors", MLP_HERE)
    asked = {"class_path": OURS, "init_args": {"name": path, "num_outputs": 2}}
    said = without_files(asked)
    assert said["init_args"]["name"]["class_path"] == "stablelightning.nn.MLP"
    assert said["init_args"]["weights"] == path
    assert said["init_args"]["num_outputs"] == 2
    assert asked["init_args"]["name"] == path


@pytest.mark.parametrize(
    "description", [3, {"class_path": "torch.nn.Linear"}, {"class_path": OURS, "init_args": {}}]
)
def test_other_descriptions_stay(description):
    assert without_files(description) is description


# ---- again ------------------------------------------------------------------------------------


def test_without_weights_nothing_is_fetched_or_read(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("stablelightning.model.backbones.read_weights", no_network)
    with without_weights():
        assert backbone("resnet18", num_outputs=2).fc.out_features == 2
        assert backbone("resnet18", weights="gone.pth", num_outputs=2).fc.out_features == 2
        assert backbone(MLP(3, 3), weights="gone.pth").training
        assert backbone(f"{TINY_VIT}.augreg_in21k", settings=TINY).pos_embed.shape[1] == 17
    with pytest.raises(CheckpointError):
        backbone("resnet18")


def test_it_copies_and_pickles(resnet_file):
    net = backbone("resnet18", weights=resnet_file, num_outputs=3, dropout=0.1)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert same(again.state_dict(), net.state_dict())
        assert again.preprocessing == net.preprocessing
        assert loaded_parameters(again) == loaded_parameters(net)
