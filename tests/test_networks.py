"""Networks by name: timm, torchvision, a file's function, checkpoints of all kinds, training and its cache, errors."""

import dataclasses
import json
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from howsure import ArrayImages, Backbone, InputSpec, Recipe, UserError
from howsure.blueprints import blueprint_of
from howsure.checkpoints import load_checkpoint
from howsure.network import Network
from howsure.networks import load_network
from howsure.plugins import BACKBONES
from howsure.training import accuracy

TIMM = "timm/test_vit"  # timm's own network for tests: 160×160, half a million parameters


class Tiny(Backbone):
    """A linear classifier on 4×4 grey images."""

    input = InputSpec((4, 4), (0.5,), (0.25,))
    recipe = Recipe(epochs=3, lr=0.05, batch_size=8)

    def build(self, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


class Untaught(Tiny):
    """The same without a recipe."""

    recipe = None


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    len(BACKBONES)
    for name, cls in (("tiny", Tiny), ("untaught", Untaught)):
        monkeypatch.setitem(BACKBONES._classes, name, cls)


@pytest.fixture
def images() -> ArrayImages:
    y = np.arange(40) % 2
    return ArrayImages(
        (np.random.default_rng(0).integers(0, 100, (40, 4, 4)) + 100 * y[:, None, None]).astype(np.uint8), y
    )


def tiny(**options):
    return load_network("t", "tiny", num_classes=2, **options)


def weights(classes: int = 2) -> dict[str, torch.Tensor]:
    return Tiny().build(classes).state_dict()


# Trained on the spot


def test_trains_once_and_keeps_the_weights_with_their_record(tmp_path, images):
    seen: list[tuple[int, int]] = []
    options = {"train_images": images, "test_images": images, "cache": tmp_path, "progress": lambda *d: seen.append(d)}
    first, second = tiny(**options), tiny(**options)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert first.digest == second.digest
    assert first.accuracy == second.accuracy == accuracy(first, images) > 0.9
    (record,) = tmp_path.glob("*/network.json")
    content = json.loads(record.read_text())
    assert content["recipe"] == dataclasses.asdict(Tiny.recipe)
    assert {"seed": 0, "use": "tiny", "test_accuracy": first.accuracy}.items() <= content.items()
    assert {file.name for file in record.parent.iterdir()} == {"network.json", "weights.safetensors"}


def test_another_seed_data_recipe_or_input_is_another_network(tmp_path, images, monkeypatch):
    options = {"train_images": images, "cache": tmp_path}
    digests = {tiny(**options).digest, tiny(**options, seed=1).digest, tiny(**options, mean=[0.4]).digest}
    other = ArrayImages(images.x[::-1], images.y[::-1])
    digests.add(tiny(train_images=other, cache=tmp_path).digest)
    monkeypatch.setattr(Tiny, "recipe", Recipe(epochs=2, lr=0.05))
    digests.add(tiny(**options).digest)
    assert len(digests) == len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("name", ["weights.safetensors", "network.json"])
@pytest.mark.parametrize("damage", [lambda x: x[:20], lambda x: x[:-5] + bytes([x[-5] ^ 64]) + x[-4:]])
def test_damaged_kept_files_are_made_anew(tmp_path, images, name, damage):
    first = tiny(train_images=images, cache=tmp_path)
    (file,) = tmp_path.glob(f"*/{name}")
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    assert tiny(train_images=images, cache=tmp_path).digest == first.digest
    assert file.read_bytes() == sound


def test_members_are_trained_from_other_seeds(tmp_path, images):
    network = tiny(train_images=images, cache=tmp_path, members=2)
    models = [network.model, *network.members]
    assert len({float(model[1].weight.detach().sum()) for model in models}) == 3
    assert not any(model.training for model in models)


@pytest.mark.parametrize(
    ("use", "options", "says"),
    [
        ("untaught", {}, "has no recipe for training it"),
        ("tiny", {"train_images": None}, "is not trained yet"),
        ("tiny", {"members": 1, "checkpoint": "x.pt"}, "members = 1"),
        ("untaught", {"members": 1}, "members = 1"),
        (TIMM, {"members": 1}, "members = 1"),
    ],
)
def test_what_cannot_be_trained(tmp_path, images, use, options, says):
    with pytest.raises(UserError, match=says):
        load_network("n", use, num_classes=2, **{"train_images": images, "cache": tmp_path, **options})


def raises(self, num_classes):
    raise ValueError("cannot\nbe")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"build": raises}, r"test_networks\.py:\d+: ValueError: cannot be"),
        ({"build": Backbone.build}, r"backbone 'tiny': build\(\): NotImplementedError"),
        ({"build": lambda self, n: None}, r"backbone 'tiny': build\(\) returned a NoneType; it must return"),
        ({"build": lambda self, n: nn.Linear(5, n)}, r"tiny: fails on images \[1, 4, 4\]"),
        ({"input": None}, "backbone 'tiny': its class has no `input`; give it a howsure.InputSpec"),
        ({"recipe": Recipe(epochs=2, lr=1e30)}, "tiny: its logits are NaN or infinite"),
    ],
)
def test_a_backbone_that_does_not_serve_is_one_line_and_not_kept(tmp_path, images, monkeypatch, changes, says):
    for name, value in changes.items():
        monkeypatch.setattr(Tiny, name, value)
    with pytest.raises(UserError, match=says) as error:
        tiny(train_images=images, cache=tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_cache(tmp_path, images):
    (tmp_path / "file").write_text("in the way")
    epochs = []
    with pytest.raises(UserError, match="cannot be written to"):
        tiny(train_images=images, cache=tmp_path / "file", progress=lambda *epoch: epochs.append(epoch))
    assert not epochs


def test_a_disk_that_is_full_after_training_loses_no_network(tmp_path, images, monkeypatch, capsys):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert tiny(train_images=images, cache=tmp_path).accuracy is None
    assert "the trained network is not kept (No space left on device)" in capsys.readouterr().err
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


# Checkpoints


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module.model.", "_orig_mod.module.", "model._orig_mod."]
)
def test_checkpoints_bare_or_nested_with_or_without_prefix(tmp_path, nest, prefix):
    state = weights()
    content = {prefix + key: value for key, value in state.items()}
    torch.save({nest: content, "epoch": 3} if nest else content, tmp_path / "w.pt")
    network = tiny(checkpoint="w.pt", base=tmp_path)
    assert torch.equal(network.model[1].weight, state["1.weight"])


@pytest.mark.parametrize("ema", ["state_dict_ema", "model_ema"])
def test_averaged_weights_come_before_the_last_ones(tmp_path, ema):
    state = weights()
    averaged = {key: value + 1 for key, value in state.items()}
    torch.save({"state_dict": state, ema: averaged, "epoch": 3}, tmp_path / "w.pt")
    assert torch.equal(tiny(checkpoint="w.pt", base=tmp_path).model[1].weight, averaged["1.weight"])


def test_names_of_the_network_itself_are_no_prefix(tmp_path):
    network = Network("t", nn.ModuleDict({"model": Tiny().build(2)}), InputSpec((4, 4), (0.5,), (0.25,)), 2)
    state = {f"model.{key}": value for key, value in weights().items()}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
    load_checkpoint(network, tmp_path / "w.pt")
    assert torch.equal(network.model.state_dict()["model.1.weight"], state["model.1.weight"])


def test_a_checkpoint_of_averaged_weights(tmp_path):
    state = torch.optim.swa_utils.AveragedModel(Tiny().build(2)).state_dict()
    assert "n_averaged" in state
    torch.save(state, tmp_path / "w.pt")
    assert torch.equal(tiny(checkpoint="w.pt", base=tmp_path).model[1].weight, state["module.1.weight"])


def test_a_pickle_of_another_kind_is_one_line_without_a_warning(tmp_path, recwarn):
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"1.weight": np.zeros(3)}, protocol=4))
    with pytest.raises(UserError, match="holds more than tensors"):
        tiny(checkpoint="w.pt", base=tmp_path)
    assert not list(recwarn)


def test_projections_that_a_cifar_resnet_calls_shortcuts(tmp_path):
    """OpenOOD's ResNet-18, whose other names are torchvision's."""
    state = BACKBONES["cifar-resnet18"]().build(3).state_dict()
    assert "layer2.0.downsample.0.weight" in state
    torch.save({key.replace("downsample", "shortcut"): value for key, value in state.items()}, tmp_path / "w.pt")
    network = load_network("n", "cifar-resnet18", num_classes=3, checkpoint="w.pt", base=tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in network.model.state_dict().items())


def test_a_checkpoint_in_safetensors(tmp_path):
    state = weights()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    network = tiny(checkpoint=str(tmp_path / "w.safetensors"))
    assert torch.equal(network.model[1].weight, state["1.weight"])


def rename(old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): value for key, value in weights().items()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (weights(10), "a network of 10 classes, but the data has 2"),
        (rename("1.weight", "fc.weight"), r"lacks '1.weight' and it has 'fc.weight', unknown"),
        ({**weights(), "2.weight": torch.zeros(1)}, "it has '2.weight', unknown to the network"),
        ({**weights(), "1.weight": torch.zeros(2, 9)}, r"'1.weight' is \[2, 9\], but in the network 't' \[2, 16\]"),
        ({}, "contains no state dict"),
        ([1, 2], "contains no state dict"),
        ({"epoch": 3}, "contains no state dict"),
        (Tiny().build(2), "holds more than tensors"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, content, says):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=says) as error:
        tiny(checkpoint="w.pt", base=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"PK\x03\x04cut", b"hello there"])
def test_a_damaged_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"not a readable checkpoint \([^)]+|more than tensors, or is damaged") as error:
        tiny(checkpoint=name, base=tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such checkpoint"):
        tiny(checkpoint="none.pt", base=tmp_path)
    with pytest.raises(UserError, match="no such checkpoint"):
        tiny(checkpoint=".", base=tmp_path)


# timm and torchvision


def test_a_timm_network_takes_its_inputs_from_its_own_config(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "w.pt")
    network = load_network("n", TIMM, num_classes=3, checkpoint="w.pt", base=tmp_path)
    assert network.input == InputSpec((160, 160), (0.5,) * 3, (0.5,) * 3, 0.95, "bicubic")
    assert network.heads == ("head",)


def test_a_timm_network_of_another_size_and_one_channel(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=3, in_chans=1, img_size=64).state_dict(), tmp_path / "w.pt")
    network = load_network(
        "n", TIMM, num_classes=3, checkpoint="w.pt", base=tmp_path, size=(64, 64), mean=[0.5], std=[0.5]
    )
    assert network.input == InputSpec((64, 64), (0.5,), (0.5,), None, "bicubic")


def test_a_size_for_a_timm_network_that_knows_none(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.pt")
    network = load_network("n", "timm/test_resnet", num_classes=3, checkpoint="w.pt", base=tmp_path, size=(32, 48))
    assert network.input.size == (32, 48)


def test_pretrained_weights_are_asked_for_and_must_have_the_datas_classes(monkeypatch):
    def create(name, pretrained=False, **options):
        assert pretrained
        return real(name, num_classes=7, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    assert load_network("n", TIMM, num_classes=7).num_classes == 7
    with pytest.raises(UserError, match="a network of 7 classes, but the data has 10; give checkpoint"):
        load_network("n", TIMM, num_classes=10)


FETCHERS = [(timm, "create_model", TIMM), (torchvision.models, "get_model", "torchvision/resnet18")]


@pytest.mark.parametrize(("module", "function", "use"), FETCHERS)
def test_a_failed_download_says_to_give_a_checkpoint(monkeypatch, module, function, use):
    def fail(*args, **options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(module, function, fail)
    with pytest.raises(UserError, match=r"pretrained weights are unavailable \(no route to host\); give checkpoint"):
        load_network("n", use, num_classes=10)


def test_a_torchvision_network_takes_its_inputs_from_its_weights(tmp_path):
    torch.save(torchvision.models.get_model("squeezenet1_1", num_classes=3).state_dict(), tmp_path / "w.pt")
    network = load_network("n", "torchvision/squeezenet1_1", num_classes=3, checkpoint="w.pt", base=tmp_path)
    assert network.input.size == (224, 224)
    assert network.input.mean == (0.485, 0.456, 0.406)
    assert network.input.crop == 224 / 256


@pytest.mark.parametrize("size", [(500, 375), (333, 512), (224, 224), (61, 300)])
@pytest.mark.parametrize(
    "use",
    [
        *(
            "torchvision/resnet50",
            "torchvision/efficientnet_v2_s",
            "torchvision/regnet_y_400mf",
            "torchvision/maxvit_t",
        ),
        *("timm/resnet18", "timm/deit3_small_patch16_384", "timm/efficientnet_b0", "timm/test_vit"),
        "timm/eva02_tiny_patch14_336",
    ],
)
def test_images_are_resized_and_cropped_as_the_networks_own_library_does(use, size):
    own = blueprint_of(use, 10, Path(), None, None, None).input
    network = Network("n", nn.Identity(), own, 10)
    library, name = use.split("/")
    if library == "timm":
        config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
        transform = timm.data.create_transform(**config)
    else:
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    got = network.normalise(torch.from_numpy(network.prepare(image).copy())[None])[0]
    torch.testing.assert_close(got, transform(image), rtol=0, atol=1e-5)


def test_a_network_from_a_file_is_given_images_as_its_configuration_says(tmp_path):
    code = f"import timm\n\ndef make():\n    return timm.create_model('{TIMM.removeprefix('timm/')}')\n"
    (tmp_path / "net.py").write_text(code)
    own, named = (blueprint_of(use, 1000, tmp_path, None, None, None).input for use in ("net.py:make", TIMM))
    assert own == named
    assert blueprint_of("net.py:make", 1000, tmp_path, None, None, (32, 32)).input.crop is None


@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("timm/resnet5o", "unknown timm network 'resnet5o'; did you mean resnet50"),
        ("torchvision/resnet19", "unknown torchvision network 'resnet19'; did you mean resnet1"),
        ("torchvision/maskrcnn_resnet50_fpn", "unknown torchvision network"),
        ("resnet50", "did you mean timm/resnet50"),
        ("small-cn", "did you mean small-cnn"),
        ("swin_t", "did you mean torchvision/swin_t"),
        ("net.py", "'net.py': name the function that builds the network, as in net.py:build"),
        ("net.py:", "as in net.py:build"),
    ],
)
def test_unknown_names(use, says):
    with pytest.raises(UserError, match=says):
        load_network("n", use, num_classes=10)


# A function in a file

HEADER = "from torch import nn\n\n"
PLAIN = HEADER + "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))\n"
WITH_CLASSES = PLAIN.replace("make()", "make(num_classes)").replace("10", "num_classes")
INPUTS = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [4, 4]}


def from_file(folder: Path, name: str, code: str, **options):
    (folder / f"{name}.py").write_text(code)
    options = {**INPUTS, **options}
    return load_network("n", f"{name}.py:make", num_classes=10, base=folder, **options)


def test_a_function_in_a_file(tmp_path):
    assert from_file(tmp_path, "plain", PLAIN).input == InputSpec((4, 4), (0.5,) * 3, (0.5,) * 3)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).state_dict(), tmp_path / "w.pt")
    assert from_file(tmp_path, "with_classes", WITH_CLASSES, checkpoint="w.pt").heads == ("1",)


NEGATED = """
import layer
from torch import nn
from torch.nn import functional as F

def plain():
    return nn.Sequential(nn.Flatten(), layer.Layer(), nn.Linear(48, 10))

def negated():
    net = plain()
    net.register_forward_hook(lambda layer, inputs, logits: -logits)
    return net
"""
LAYER = HEADER + "class Layer(nn.Module):\n    def forward(self, x):\n        return {}\n"


def test_sixteen_bits_are_seen_as_eight_and_numbers_of_no_range_are_an_error(images):
    network = tiny(train_images=images)
    ramp = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    assert network.prepare(Image.fromarray(ramp)).ravel().tolist() == [16 * i for i in range(16)]
    with pytest.raises(UserError, match="mode F"):
        network.prepare(Image.fromarray(ramp.astype(np.float32)))


def test_other_code_around_the_same_weights_is_another_network(tmp_path, monkeypatch):
    torch.save({"2.weight": torch.ones(10, 48), "2.bias": torch.ones(10)}, tmp_path / "w.pt")

    def digest(function="plain", line="x", more=""):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        (folder / "layer.py").write_text(LAYER.format(line))
        (folder / "net.py").write_text(NEGATED + more)
        monkeypatch.syspath_prepend(folder)
        sys.modules.pop("layer", None)
        use, weights = f"net.py:{function}", str(tmp_path / "w.pt")
        return load_network("n", use, num_classes=10, base=folder, checkpoint=weights, **INPUTS).digest

    assert digest() == digest()
    assert len({digest(), digest("negated"), digest(line="-x"), digest(more="# edited\n")}) == 4


class Scaled(nn.Flatten):
    """A number that neither its text nor its weights show."""

    factor = 1.0

    def forward(self, x):
        return super().forward(x) * self.factor


def test_what_no_code_shows_changes_the_digest_by_what_the_network_says():
    digests = []
    for factor in (1.0, 1.0, 2.0):
        model = nn.Sequential(Scaled(), nn.Linear(16, 4))
        model[0].factor = factor
        nn.init.ones_(model[1].weight)
        nn.init.ones_(model[1].bias)
        digests.append(Network("n", model, Tiny.input, 4).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_function_whose_network_says_what_its_inputs_look_like(tmp_path):
    code = (
        HEADER
        + "import timm\n\ndef make(num_classes):\n    return timm.create_model('test_vit', num_classes=num_classes)\n"
    )
    network = from_file(tmp_path, "own_config", code, mean=None, std=None, size=None)
    assert network.input.size == (160, 160)


BOXED = (
    HEADER
    + """
class Boxed(nn.Sequential):
    def forward(self, x):
        return {"loss": None, "maps": x.flatten(1), "logits": super().forward(x)}

def make(num_classes):
    return Boxed(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
"""
)


@pytest.mark.parametrize(
    ("name", "code", "options", "says"),
    [
        ("broken", "x = 1\nimport nothing_of_that_name\n", {}, r"broken\.py:2: ModuleNotFoundError"),
        ("syntax", "def make(:\n", {}, r"syntax\.py:1: SyntaxError"),
        ("none", "x = 1\n", {}, "contains no function 'make'"),
        ("raises", "def make():\n    return 1 / 0\n", {}, r"raises\.py:2: ZeroDivisionError"),
        ("exits", "def make():\n    raise SystemExit('not\\nhere')\n", {}, r"exits\.py:2: SystemExit: not here"),
        ("number", "def make():\n    return 1\n", {}, "returned a int; it must return a torch.nn.Module"),
        ("needs", "def make(depth):\n    return depth\n", {}, r"needs\.py: make\(\): TypeError"),
        ("nan", PLAIN.replace("48, 10)", "48, 10), nn.Threshold(1e9, float('nan'))"), {}, "NaN or infinite"),
        ("silent", PLAIN, {"size": None, "std": None}, "does not say what its inputs look like; give std, size"),
        ("classes", PLAIN.replace("10", "12"), {}, "a network of 12 classes, but the data has 10"),
        ("fails", PLAIN, {"size": [5, 5]}, r"fails on images \[3, 5, 5\]"),
        ("map", PLAIN.replace("nn.Flatten(), nn.Linear(48, 10)", "nn.Conv2d(3, 10, 1)"), {}, "to logits"),
        ("boxed", BOXED, {}, r"not to dict; wrap it in a module whose forward returns network\(x\)\['logits'\]"),
        ("std", PLAIN, {"std": [0.5]}, "one value per channel, 1 or 3; got 3 and 1"),
        ("zero", PLAIN, {"std": [0.5, 0.0, 0.5]}, "std must be above 0"),
        ("no_number", PLAIN, {"std": [float("nan"), 0.5, 0.5]}, "std must be above 0"),
        ("size", PLAIN, {"size": [32]}, r"size must be \[height, width\]"),
    ],
)
def test_a_function_that_does_not_serve(tmp_path, name, code, options, says):
    with pytest.raises(UserError, match=says) as error:
        from_file(tmp_path, name, code, **options)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such plugin file"):
        load_network("n", "none.py:make", num_classes=10, base=tmp_path)


class _Viewing(nn.Module):
    """Takes a `view` of its map, which channels side by side do not allow."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))


class _Flattening(_Viewing):
    """The same with `flatten`."""

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("kind", "layout"), [("_Viewing", torch.contiguous_format), ("_Flattening", torch.channels_last)]
)
def test_kernels_keep_channels_side_by_side_where_the_network_allows(tmp_path, kind, layout):
    model = globals()[kind]().eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "network.pt")
    (tmp_path / "build.py").write_text(f"from {__name__} import {kind}\n\ndef build():\n    return {kind}()\n")
    network = load_network(
        "net", f"{tmp_path}/build.py:build", num_classes=5, checkpoint=str(tmp_path / "network.pt"),
        mean=(0.5,) * 3, std=(0.5,) * 3, size=(8, 8),
    )  # fmt: skip
    assert network.model.conv.weight.is_contiguous(memory_format=layout)
    assert all(torch.equal(value, weights[name]) for name, value in network.model.state_dict().items())
    torch.testing.assert_close(network.model(network.example()), model(network.example()))


DOUBTFUL = """
from torch import nn
from torch.nn import functional as F
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.body, self.last = nn.Linear(48, 10), last

    def forward(self, x):
        return self.last(self.body(x.flatten(1)))

def chance():
    return Net(lambda z: F.dropout(z, 0.5, True))

def company():
    return Net(nn.BatchNorm1d(10, track_running_stats=False))

def softmax():
    return Net(nn.Softmax(1))

def plain():
    return Net(nn.Identity())
"""


@pytest.mark.parametrize(
    ("function", "says"),
    [("chance", "each time"), ("company", "in different batches"), ("softmax", "probabilities"), ("plain", "")],
)
def test_what_makes_scores_doubtful_is_told(function, says, tmp_path, capsys):
    (tmp_path / "net.py").write_text(DOUBTFUL)
    inputs = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": [4, 4]}
    load_network("mine", f"net.py:{function}", num_classes=10, base=tmp_path, **inputs)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == bool(says)
    assert all(line.startswith(f"howsure: net.py:{function}: gives ") and says in line for line in told)


def test_a_network_whose_weights_are_drawn_is_the_same_each_time(tmp_path):
    (tmp_path / "net.py").write_text(DOUBTFUL)
    inputs = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": [4, 4]}
    before = torch.get_rng_state()
    first, second, other = (
        load_network("mine", "net.py:plain", num_classes=10, base=tmp_path, seed=seed, **inputs) for seed in (0, 0, 1)
    )
    assert first.digest == second.digest != other.digest
    assert torch.equal(torch.get_rng_state(), before)


class Cosine(nn.Linear):
    def forward(self, x):
        return 10 * F.linear(F.normalize(x), F.normalize(self.weight))


class Doubled(nn.Sequential):
    def forward(self, x):
        return super().forward(x).mul_(2)


def hooked(net):
    net[-1].register_forward_hook(lambda _m, _x, out: out / 2)
    return net


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), Cosine(8, 3, bias=False)),
        Doubled(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)),
        hooked(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))),
    ],
    ids=["normalised", "scaled in place", "changed by a hook"],
)
def test_a_head_is_what_makes_the_logits_from_its_weights(net):
    network = Network("net", net.eval(), InputSpec((4, 4), (0.5,) * 3, (0.25,) * 3), 3)
    assert network.heads == ()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert dataclasses.replace(network, model=plain).heads == ("3",)


class Wiped(nn.Sequential):
    def forward(self, x):
        features = self[2](self[1](self[0](x)))
        logits = self[3](features)
        features.zero_()
        return logits


def test_a_head_is_known_by_its_input_as_it_was():
    net = Wiped(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert Network("net", net, InputSpec((4, 4), (0.5,) * 3, (0.25,) * 3), 3).heads == ("3",)
