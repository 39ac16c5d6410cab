"""Registered backbones, trained once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from . import training
from .backbone import Backbone, InputSpec
from .blueprints import built
from .checkpoints import load_checkpoint
from .data import cache_root
from .errors import UserError, why
from .images import Images
from .keys import hash_file, layers_of, source_of
from .network import Network, check_output
from .store import whole
from .training import Progress

_TRAINED_WITH = ("torch", "timm", "numpy")


@dataclass
class Trainer:
    """Trains a registered backbone, or loads the network that was trained earlier under the same key."""

    use: str
    backbone: Backbone
    input: InputSpec
    num_classes: int
    images: Images | None
    test_images: Images | None
    device: torch.device
    cache: Path | None
    progress: Progress | None

    def __call__(self, name: str, seed: int) -> Network:
        """The network, called `name`, trained from this seed, on the CPU.

        Raises:
            UserError: it has no recipe or no training images, fails on its inputs, or the cache cannot be written to.
        """
        if self.backbone.recipe is None or self.images is None:
            reason = "has no recipe for training it" if self.images is not None else "is not trained yet"
            raise UserError(f"backbone '{self.use}' {reason}; give checkpoint = a file")
        cache = self.cache or cache_root() / "networks"
        file = cache / self.key(seed) / "weights.safetensors"
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            network = Network(name, self.build(), self.input, self.num_classes)
        check_output(network, self.use)
        record = _cached(network, file)
        if record is None:
            _check_writable(cache)
            network = replace(network, device=self.device)
            training.train(network, self.images, self.backbone.recipe, seed, self.progress)
            check_output(network, self.use)
            record = self.record(network, seed)
            network = replace(network, device=torch.device("cpu"))
            try:
                _keep(network, record, file)
            except (OSError, SafetensorError) as error:
                print(f"howsure: {file.parent}: the trained network is not kept ({why(error)})", file=sys.stderr)
        network.accuracy = record.get("test_accuracy")
        return network

    def build(self) -> nn.Module:
        return built(self.use, self.backbone, self.num_classes)

    def record(self, network: Network, seed: int) -> dict[str, Any]:
        """What is stored beside the weights."""
        assert self.images is not None
        assert self.backbone.recipe is not None
        record: dict[str, Any] = {
            "use": self.use,
            "seed": seed,
            "num_classes": self.num_classes,
            "recipe": asdict(self.backbone.recipe),
            "input": asdict(self.input),
            "train_images": self.images.fingerprint,
            "train_accuracy": training.accuracy(network, self.images),
            "versions": {package: version(package) for package in _TRAINED_WITH},
        }
        if self.test_images is not None:
            record["test_accuracy"] = training.accuracy(network, self.test_images)
        return record

    def key(self, seed: int) -> str:
        """A key made from all that determines the weights: code of network and training, recipe, data, seed."""
        assert self.images is not None
        layers = layers_of(self.build())
        code = [source_of(type(self.backbone)), layers, hash_file(training.__file__), *map(version, _TRAINED_WITH)]
        parts = (self.use, code, self.backbone.recipe, self.input, self.num_classes, self.images.fingerprint, seed)
        return f"{self.use}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"


def _cached(network: Network, file: Path) -> dict[str, Any] | None:
    """Load stored weights into the network; returns their record, or None if they are missing or damaged."""
    record = file.with_name("network.json")
    if not (file.is_file() and record.is_file()):
        return None
    with suppress(UserError, ValueError, OSError):
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept.get("weights") in (None, hash_file(file)):
            load_checkpoint(network, file)
            return kept
    return None


def _keep(network: Network, record: dict[str, Any], file: Path) -> None:
    """Write weights and record, each file whole or not at all."""
    with whole(file) as temporary:
        safetensors.torch.save_file({k: v.contiguous() for k, v in network.model.state_dict().items()}, temporary)
        weights = hash_file(temporary)
    with whole(file.with_name("network.json")) as temporary:
        temporary.write_text(json.dumps({**record, "weights": weights}, indent=2), encoding="utf-8")


def _check_writable(cache: Path) -> None:
    """Raise UserError, before training rather than after it, if a folder cannot be written to."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise UserError(f"{cache}: cannot be written to ({why(error)}); set HOWSURE_CACHE to another folder") from error
