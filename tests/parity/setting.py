"""Network and images on which scores are compared: real ones where they lie in $HOWSURE_DATA, digits otherwise."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from howsure import Features, Head, InputSpec, Labels, Logits, Method, Network, Reps
from howsure.forward import run_pass
from howsure.plugins import BACKBONES
from howsure.representations import HeadWeights

N_TRAIN, N_TEST = 1000, 500


@dataclass(frozen=True)
class Images:
    """Features `[N, D]`, logits `[N, C]`, labels `[N]` and the network's inputs `[N, …]` of a set of images."""

    h: Tensor
    z: Tensor
    y: Tensor
    x: Tensor


@dataclass(frozen=True)
class Setting:
    """Images to fit on, in-distribution and shifted test images (in this order), the network and its last layer.

    `network` is None for the digits, which are no images to it.
    """

    name: str
    train: Images
    test: Images
    head: nn.Linear
    network: Network | None = None

    @property
    def shifted(self) -> Tensor:
        """Which test images are shifted, `[N]`."""
        return torch.arange(len(self.test.y)) >= N_TEST

    def reps(self, images: Images) -> Reps:
        """What a method reads."""
        head = HeadWeights(self.head.weight, self.head.bias)
        return Reps({Logits(): images.z, Features(): images.h, Labels(): images.y, Head(): head})

    def look(self, images: Images, method: Method) -> Reps:
        """What a method reads, by a pass of the network where it is more than `reps` gives."""
        if all(need in self.reps(images) for need in method.needs):
            return self.reps(images)
        assert self.network is not None
        loaded = zip(images.x.split(100), images.y.split(100), torch.arange(len(images.x)).split(100), strict=True)
        return run_pass(self.network, loaded, method.needs)


@cache
def setting() -> Setting:
    """The real network and images if both are there."""
    root = Path(os.environ.get("HOWSURE_DATA", "."))
    folder, checkpoint = root / "cifar10-jpeg", root / "resnet20-cifar10-jpeg.pt"
    return _cifar(folder, checkpoint) if folder.is_dir() and checkpoint.is_file() else _digits()


def _cifar(folder: Path, checkpoint: Path) -> Setting:
    network = BACKBONES["cifar-resnet20"]().build(10)
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    train, train_y = _read(folder / "train", N_TRAIN // 10)
    test, test_y = _read(folder / "test", 2 * N_TEST // 10)
    order = torch.arange(2 * N_TEST).reshape(10, 2, -1).transpose(0, 1).flatten()
    test, test_y = test[order], test_y[order]
    test[N_TEST:] = _noisy(test[N_TEST:], 25 / 255)
    spec = InputSpec(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    images = [(test - mean) / std, (train - mean) / std]
    found = _setting("ResNet-20, CIFAR-10 and noise of sd 25", network, "linear", images, [test_y, train_y])
    return replace(found, network=Network("resnet20", network, spec, 10))


def _digits() -> Setting:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(pixels[order] / 16, dtype=torch.float32)
    y = torch.tensor(labels[order])
    test = torch.cat([x[N_TRAIN:][:N_TEST], _noisy(x[-N_TEST:], 0.3)])
    test_y = torch.cat([y[N_TRAIN:][:N_TEST], y[-N_TEST:]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16), nn.Softplus(), nn.Linear(16, 10))
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(80):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[:N_TRAIN]), y[:N_TRAIN]).backward()
            optimiser.step()
    return _setting("MLP, digits and noise of sd 0.3", network, "4", [test, x[:N_TRAIN]], [test_y, y[:N_TRAIN]])


def _setting(name: str, network: nn.Module, head: str, images: list[Tensor], labels: list[Tensor]) -> Setting:
    layer = network.eval().get_submodule(head)
    assert isinstance(layer, nn.Linear)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = [network(x) for x in images]
    handle.remove()
    test, train = (Images(*parts) for parts in zip(seen, logits, labels, images, strict=True))
    return Setting(name, train, test, layer.requires_grad_(False))


def _read(folder: Path, per_class: int) -> tuple[Tensor, Tensor]:
    classes = sorted(folder.iterdir())
    files = [file for c in classes for file in sorted(c.iterdir())[:per_class]]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = torch.arange(len(classes)).repeat_interleave(per_class)
    return torch.tensor(pixels).permute(0, 3, 1, 2) / 255, labels


def _noisy(images: Tensor, sd: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sd * noise).clamp(0, 1)
