"""Images as a network sees them: splits, prepared pixels in memory, and batches."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from .backbone import InputSpec
from .corruptions import corrupt
from .images import Images, image_id
from .network import Network

_GPU_BATCH = 128
_CPU_BATCH = 64 * 32 * 32
_KEPT_BYTES = 2**29
Item = tuple[np.ndarray, int, int]
Loaded = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Split:
    """A named set of images, perhaps corrupted on the fly.

    Attributes:
        corruption: its type and severity.
        seed: of the corruption's random choices.
        clean: the originals of images that come corrupted. Ids, and hence parts, are those of the originals.
    """

    name: str
    images: Images
    corruption: tuple[str, int] | None = None
    seed: int = 0
    clean: Images | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """A text that changes whenever an image, a label or the corruption does."""
        clean = f" beside {self.clean.fingerprint}" if self.clean else ""
        return f"{self.images.fingerprint} {self.corruption} {self.seed if self.corruption else ''}{clean}"


class Prepared(TorchDataset[Item]):
    """A split as the network sees it: `(uint8 pixels [H, W, C], label, id)`; the id is a hash of the clean pixels.

    Items in `kept`, by index, are taken from there; with `keep`, new ones are added to it.
    """

    def __init__(self, split: Split, spec: InputSpec, kept: dict[int, Item] | None = None, keep: bool = False) -> None:
        self.split, self.input, self.keep = split, spec, keep
        self.kept = {} if kept is None else kept

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Item:
        item = self.kept.get(index) or self._prepare(index)
        if self.keep:
            self.kept[index] = item
        return item

    def _prepare(self, index: int) -> Item:
        image, label = self.split.images[index]
        pixels = self.input.prepare(image)
        clean = pixels if self.split.clean is None else self.input.prepare(self.split.clean[index][0])
        identity = image_id(clean)
        if self.split.corruption:
            kind, severity = self.split.corruption
            pixels = corrupt(pixels, kind, severity, (identity + self.split.seed) % 2**32)
        return np.array(pixels), int(label), identity


class Pixels:
    """A cache of prepared images, up to half a gigabyte, for grids and for networks with the same inputs."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, InputSpec], dict[int, Item]] = {}
        self._room = _KEPT_BYTES

    def __call__(self, split: Split, network: Network, index: Sequence[int]) -> TorchDataset[Item]:
        """The images at `index`, in that order; they are kept if there is room for all of them."""
        kept = self._kept.setdefault((split.fingerprint, network.input), {})
        size = sum(i not in kept for i in index) * network.input.channels * math.prod(network.input.size)
        fits = size <= self._room
        self._room -= size if fits else 0
        return Subset(Prepared(split, network.input, kept, fits), index)


def batches(split: Split, network: Network, batch_size: int | None = None) -> Iterator[Loaded]:
    """Batches of `(inputs of the network [n, channels, H, W], labels [n], ids [n])`, in order."""
    return load([Prepared(split, network.input)], network, batch_size)


def load(prepared: Sequence[TorchDataset[Item]], network: Network, batch_size: int | None = None) -> Iterator[Loaded]:
    """Batches, as from `batches`, of several sets of prepared images one after the other."""
    workers = 0 if network.device.type == "cpu" else min(8, torch.get_num_threads())
    own = torch.Generator()  # a DataLoader would otherwise draw from the global one, which a later `fit` may use
    size = batch_size or images_at_once(network)
    loader: DataLoader[Item] = DataLoader(
        ConcatDataset(prepared), size, num_workers=workers, multiprocessing_context=_start() if workers else None,
        generator=own,
    )  # fmt: skip
    for pixels, labels, ids in loader:
        yield network.normalise(pixels), labels, ids


def _start() -> str | None:
    """How workers start: as forks where that can be, since data sets of plugins cannot be sent to others."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def images_at_once(network: Network, processes: int = 1) -> int:
    """The batch size: 128 on a GPU; on a CPU, to fit its cache, as many as hold the pixels of 64 images of 32×32, but
    at most 256, and at least 32 in all processes that work at once."""
    if network.device.type != "cpu":
        return _GPU_BATCH
    return min(256, max(-(-32 // processes), _CPU_BATCH // math.prod(network.input.size)))
