"""Registered networks: shapes, key names, parameters, heads, and that they learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from howsure import ArrayImages, Network
from howsure.backbone import InputSpec, Recipe
from howsure.plugins import BACKBONES
from howsure.training import accuracy, load_pixels, shift, train

MILLIONS = {
    "cifar-resnet20": 0.27, "cifar-resnet32": 0.46, "cifar-resnet44": 0.66, "cifar-resnet56": 0.85,
    "cifar-resnet18": 11.17, "cifar-wrn-40-2": 2.24, "cifar-wrn-28-10": 36.48, "cifar-densenet": 0.77,
}  # fmt: skip


def network(name: str, num_classes: int = 5) -> Network:
    backbone = BACKBONES[name]()
    return Network(name, backbone.build(num_classes), backbone.input, num_classes)


def squares(n: int = 96) -> ArrayImages:
    """8×8 grey: bright on the left (class 0) or on the right (class 1), with noise."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 60, (n, 8, 8)), np.arange(n) % 2
    x[y == 0, :, 1:4] += 150
    x[y == 1, :, 4:7] += 150
    return ArrayImages(x.astype(np.uint8), y)


def test_no_file_is_broken():
    assert BACKBONES.broken == {}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_gives_logits_of_any_number_of_classes_from_one_last_linear_layer(name):
    net = network(name)
    with torch.no_grad():
        assert net.model(net.example(3)).shape == (3, 5)
    (head,) = net.heads
    assert net.model.get_submodule(head).out_features == 5


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_parameters_are_as_many_as_published(name, millions):
    with torch.device("meta"):
        model = BACKBONES[name]().build(10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_resnet20_has_the_usual_keys_and_no_parameter_in_its_shortcuts():
    keys = {key.rpartition(".")[0] for key, _ in network("cifar-resnet20").model.named_parameters()}
    blocks = {f"layer{i}.{j}.{part}" for i in (1, 2, 3) for j in range(3) for part in ("conv1", "bn1", "conv2", "bn2")}
    assert keys == blocks | {"conv1", "bn1", "linear"}


def test_the_shortcut_drops_pixels_and_pads_channels_with_zeros_on_both_sides():
    block = network("cifar-resnet20").model.layer2[0]
    x = torch.rand(2, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_the_small_cnn_has_dropout_and_batch_norm():
    modules = list(network("small-cnn").model.modules())
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in modules)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in modules)


@pytest.mark.parametrize("name", ["small-cnn", "small-resnet", "small-vit"])
def test_training_learns_and_is_the_same_from_the_same_seed(name):
    recipe = Recipe(epochs=6, lr=0.003, batch_size=16, shift=1, smoothing=0.05)
    images, nets, seen = squares(), [], []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(network(name, 2))
        state = torch.get_rng_state()
        train(nets[-1], images, recipe, seed=1, progress=lambda *done: seen.append(done))
        assert torch.equal(state, torch.get_rng_state())
    assert seen[:6] == [(epoch, 6) for epoch in range(1, 7)]
    assert accuracy(nets[0], images) >= 0.95
    assert nets[0].digest == nets[1].digest
    assert not any(m.training for m in nets[0].model.modules())
    assert all(p.grad is None for p in nets[0].model.parameters())


def test_images_are_brought_to_the_networks_size_and_channels():
    spec = InputSpec(size=(4, 6), mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels, labels = load_pixels(Network("n", torch.nn.Identity(), spec, 2), squares(4))
    assert (pixels.shape, pixels.dtype, labels.tolist()) == ((4, 4, 6, 3), torch.uint8, [0, 1, 0, 1])


@settings(max_examples=30, deadline=None)
@given(most=st.integers(0, 4), seed=st.integers(0, 2**31), channels=st.sampled_from([1, 3]))
def test_shift_moves_whole_images_and_lets_zeros_in(most, seed, channels):
    pixels = torch.zeros(6, 9, 9, channels, dtype=torch.uint8)
    pixels[:, 4, 4] = 200
    out = shift(pixels, most, torch.Generator().manual_seed(seed))
    assert out.shape == pixels.shape
    assert out.sum() == pixels.sum()
    rows, columns = out[..., 0].nonzero()[:, 1:].T
    assert (rows - 4).abs().max() <= most
    assert (columns - 4).abs().max() <= most


def test_cifar_networks_see_other_shapes_as_openood_shows_them():
    """The shorter side at 32 pixels, and the middle of it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    theirs = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32)])(image)
    assert np.array_equal(BACKBONES["cifar-resnet18"].input.prepare(image), np.asarray(theirs))
