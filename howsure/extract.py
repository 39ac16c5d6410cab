"""One pass over a split computes every representation that the selected methods need; what is stored is not redone."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from .backbone import InputSpec
from .corruptions import corrupt
from .data import Images
from .errors import NoGradients, UserError
from .gradients import GradResult, grad_sq_norms
from .keys import make_key, room, sources_of
from .layers import module
from .losses import Loss
from .network import Network
from .representations import Batch, Grads, Logits, Representation, Reps, Tap
from .rows import Rows, passes
from .store import Memory, Store

GPU_BATCH = 128
CPU_BATCH = 64 * 32 * 32
KEPT_BYTES = 2**29
Item = tuple[np.ndarray, int, int]
Loaded = tuple[Tensor, Tensor, Tensor]
States = Mapping[Representation[Any], dict[str, Tensor]]
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Split:
    """Images to look at, perhaps corrupted on the fly: `(type, severity)`."""

    name: str
    images: Images
    corruption: tuple[str, int] | None = None
    seed: int = 0
    clean: Images | None = None
    """The same images before somebody else corrupted them: theirs are the ids, and so the parts."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever an image, a label or the corruption does."""
        clean = f" beside {self.clean.fingerprint}" if self.clean else ""
        return f"{self.images.fingerprint} {self.corruption} {self.seed if self.corruption else ''}{clean}"


class Prepared(TorchDataset[Item]):
    """A split as the network sees it: `(uint8 pixels [H, W, C], label, id)`; the id is a hash of the clean pixels.

    What is in `kept`, by index, is taken from there; with `keep` what is seen is put there.
    """

    def __init__(self, split: Split, network: Network, kept: dict[int, Item] | None = None, keep: bool = False) -> None:
        self.split, self.network, self.keep = split, network, keep
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
        pixels = self.network.prepare(image)
        known = pixels if self.split.clean is None else self.network.prepare(self.split.clean[index][0])
        identity = int.from_bytes(hashlib.blake2b(known.tobytes(), digest_size=8).digest(), "big") >> 1
        if self.split.corruption:
            kind, severity = self.split.corruption
            pixels = corrupt(pixels, kind, severity, (identity + self.split.seed) % 2**32)
        return np.array(pixels), int(label), identity


class Pixels:
    """Prepared images in memory, up to half a gigabyte: grids, and networks with the same input, come back to them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, InputSpec], dict[int, Item]] = {}
        self._room = KEPT_BYTES

    def __call__(self, split: Split, network: Network, index: Sequence[int]) -> TorchDataset[Item]:
        """The images at `index`, in that order; kept where there is room for all of them."""
        kept = self._kept.setdefault((split.fingerprint, network.input), {})
        size = sum(i not in kept for i in index) * network.input.channels * math.prod(network.input.size)
        fits = size <= self._room
        self._room -= size if fits else 0
        return Subset(Prepared(split, network, kept, fits), index)


def batches(split: Split, network: Network, batch_size: int | None = None) -> Iterator[Loaded]:
    """Batches of `(pixels uint8 [n, H, W, C], labels [n], ids [n])` in order.

    Without a `batch_size` 128 images on a GPU; on the CPU as many as the pixels of 64 images of 32×32, from 32 to 256:
    more of them leave its cache.
    """
    return _load([Prepared(split, network)], network, batch_size)


def _load(prepared: Sequence[TorchDataset[Item]], network: Network, batch_size: int | None = None) -> Iterator[Loaded]:
    cpu = network.device.type == "cpu"
    if batch_size is None:
        batch_size = min(256, max(32, CPU_BATCH // math.prod(network.input.size))) if cpu else GPU_BATCH
    workers = 0 if cpu else min(8, torch.get_num_threads())
    own = torch.Generator()  # the global one would be moved on, and a fit that draws from it depend on what is stored
    yield from DataLoader(ConcatDataset(prepared), batch_size, num_workers=workers, generator=own)


def run_pass(
    network: Network,
    loaded: Iterable[Loaded],
    representations: Sequence[Representation[Any]],
    states: States | None = None,
    progress: Progress = lambda n: None,
) -> Reps:
    """The representations of all batches, computed with one forward pass of the network over each.

    Args:
        loaded: batches as `batches` gives them.
        representations: what to compute; those that are fitted need their state in `states`.
        progress: called with the number of images done after each batch.
    """
    states = states or {}
    rows: dict[Representation[Any], list[dict[str, Tensor]]] = {rep: [] for rep in representations}
    for pixels, labels, ids in loaded:
        batch = _look(network, pixels, labels, ids, representations)
        for rep in representations:
            if rep.per_image or not rows[rep]:
                value = rep.pack(rep.compute(batch, **states.get(rep, {})))
                rows[rep].append({k: v.detach().cpu() for k, v in value.items()})
        progress(len(pixels))
    return Reps(
        {rep: rep.unpack({k: torch.cat([r[k] for r in found]) for k in found[0]}) for rep, found in rows.items()}
    )


def _look(
    network: Network, pixels: Tensor, labels: Tensor, ids: Tensor, representations: Sequence[Representation[Any]]
) -> Batch:
    """The shared forward pass, with one backward pass for each loss that is wanted."""
    images = network.normalise(pixels)
    taps = list(dict.fromkeys(tap for rep in representations for tap in rep.taps(network)))
    losses = list(dict.fromkeys(loss for rep in representations for loss in rep.losses()))
    grads: dict[Loss, Grads] = {}
    with _reading(network.model, taps) as readings:
        if losses:
            small = any(rep.small for rep in representations)
            result = _gradients(network, images, losses, small, readings.passes.clear)
            logits = result.logits
            for k, loss in enumerate(losses):
                grads[loss] = Grads(result.norms[k], None if result.small is None else result.small[k])
        else:
            with torch.no_grad():
                logits = network.model(images)
    read = {tap: readings.rows(tap, len(images)) for tap in taps}
    return Batch(network, images, pixels, labels, ids, logits.detach().float(), read, grads)


def _gradients(
    network: Network, images: Tensor, losses: list[Loss], small: bool, on_restart: Callable[[], None]
) -> GradResult:
    """The engine's result; NoGradients where a network has no gradients of single images."""
    try:
        return grad_sq_norms(network.model, images, losses, small=small, on_restart=on_restart)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise NoGradients(f"no gradients of single images from '{network.name}': {error}") from error


@dataclass
class _Readings:
    """What hooks have read, by tap: one list a forward pass of the model, one entry a call of the layer."""

    passes: list[dict[Tap, Tensor]] = field(default_factory=list)

    def rows(self, tap: Tap, n: int) -> Tensor:
        parts = [reading[tap] for reading in self.passes if tap in reading]
        rows = torch.cat(parts) if parts else torch.empty(0)
        if len(rows) != n:
            raise UserError(f"layer '{tap.layer}' gives {len(rows)} rows for {n} images; name another layer")
        return rows.float()


@contextmanager
def _reading(model: nn.Module, taps: Sequence[Tap]) -> Iterator[_Readings]:
    readings = _Readings()

    def start(_module: nn.Module, _inputs: Any) -> None:
        readings.passes.append({})

    def reader(tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def read(layer: nn.Module, inputs: Any, output: Any) -> None:
            value = inputs[0] if tap.side == "input" else output
            with torch.no_grad():
                readings.passes[-1][tap] = tap.reduce(value.detach(), layer).clone()

        return read

    hooks = [model.register_forward_pre_hook(start)] if taps else []
    try:
        hooks += [module(model, tap.layer).register_forward_hook(reader(tap)) for tap in taps]
        yield readings
    finally:
        for hook in hooks:
            hook.remove()


def union(needs: Iterable[Sequence[Representation[Any]]]) -> list[Representation[Any]]:
    """All that is needed, each once, with what fitted representations need themselves before them."""
    found: dict[Representation[Any], None] = {}
    for rep in (rep for group in needs for rep in group):
        for inner in (*rep.needs, rep):
            found.setdefault(inner)
    return list(found)


Wanted = tuple[Split, Tensor | None]
Found = dict[tuple[str, Representation[Any]], Rows]


class Extractor:
    """Representations of images for one network, read from the store or computed and stored.

    An image's rows are computed once: of a split that is asked for again, only the images that are not there yet.
    `fit_split` is the in-distribution training split, which fitted representations are fitted on.
    """

    def __init__(self, network: Network, store: Store | None, fit_split: Split, pixels: Pixels | None = None) -> None:
        self.network, self.fit_split = network, fit_split
        self.store: Store | Memory | None = store
        self._pixels = pixels or Pixels()
        self._states: dict[Representation[Any], dict[str, Tensor]] = {}
        self._train = Reps({})
        self._read: Found = {}

    def __call__(
        self,
        split: Split,
        representations: Sequence[Representation[Any]],
        index: Tensor | None = None,
        progress: Progress = lambda n: None,
    ) -> Reps:
        """The representations of a split, or of its images at `index`, as `together` gives them."""
        return self.together([(split, index)], representations, progress)[0]

    def together(
        self,
        wanted: Sequence[Wanted],
        representations: Sequence[Representation[Any]],
        progress: Progress = lambda n: None,
    ) -> list[Reps]:
        """The representations of several splits; images that lack the same go through the network in one pass.

        Args:
            wanted: splits, each with the indices `[n]` of images, in any order, or None for all images in order.
            progress: called with the number of images found or done.

        Raises:
            IndexError: a split has no such image.
        """
        reps, asked = list(dict.fromkeys(representations)), _asked(wanted)
        found = self._found(asked, reps, progress) if reps else {}
        given = []
        for split, index in wanted:
            given.append(Reps({rep: rep.unpack(found[split.fingerprint, rep].take(index)) for rep in reps}))
            if index is None and split == self.fit_split:
                self._train = Reps({**self._train, **given[-1]})
        return given

    def _found(
        self, asked: Sequence[tuple[Split, Tensor]], reps: Sequence[Representation[Any]], progress: Progress
    ) -> Found:
        """All rows that are asked for, and others that there are; what is computed is stored."""
        there = {(split.fingerprint, rep): self._stored(split, rep, images) for split, images in asked for rep in reps}
        found = dict(there)
        lack = [
            torch.stack([_lack(rep, there[split.fingerprint, rep], images) for rep in reps], 1)
            for split, images in asked
        ]
        progress(sum(int((~some.any(1)).sum()) for some in lack))
        for mask, some in passes(torch.cat(lack), reps):
            masks = mask.split([len(images) for _, images in asked])
            seen = [(split, images[mine]) for (split, images), mine in zip(asked, masks, strict=True) if mine.any()]
            for key, rows in self._look(seen, some, progress).items():
                found[key] = found[key].join(rows)
        for split, rep in product((split for split, _ in asked), reps):
            if found[split.fingerprint, rep] is not there[split.fingerprint, rep]:
                self._keep(split, rep, found[split.fingerprint, rep])
        return found

    def _look(
        self, seen: Sequence[tuple[Split, Tensor]], reps: Sequence[Representation[Any]], progress: Progress
    ) -> Found:
        """One pass over some images of several splits."""
        loaded = _load([self._pixels(split, self.network, images.tolist()) for split, images in seen], self.network)
        states = {rep: self.state(rep) for rep in reps if rep.needs}
        fresh = run_pass(self.network, loaded, reps, states, progress)
        sizes, found = [len(images) for _, images in seen], {}
        for rep, (i, (split, images)) in product(reps, enumerate(seen)):
            arrays = rep.pack(fresh[rep])
            mine = {key: value.split(sizes)[i] for key, value in arrays.items()} if rep.per_image else arrays
            found[split.fingerprint, rep] = Rows(mine, images if rep.per_image else None)
        return found

    def _stored(self, split: Split, rep: Representation[Any], images: Tensor) -> Rows:
        """The rows that there are; the file is read again where those in memory lack some of the images."""
        rows = self._read.get((split.fingerprint, rep), Rows())
        if self.store and rows.lack(images).any():
            arrays = self.store.get(self._key(split, rep))
            if arrays is not None:
                rows = self._read[split.fingerprint, rep] = Rows.from_file(arrays)
        return rows

    def _keep(self, split: Split, rep: Representation[Any], rows: Rows) -> None:
        if not self.store:
            return
        key = self._key(split, rep)
        try:
            self.store.put(key, rows.to_file())
        except OSError as error:
            print(f"howsure: representations are kept in memory, not on disk: {error}", file=sys.stderr)
            self.store = Memory()
            self.store.put(key, rows.to_file())
        self._read.pop((split.fingerprint, rep), None)

    def state(self, rep: Representation[Any]) -> dict[str, Tensor]:
        """The state of a fitted representation."""
        if rep not in self._states:
            if not all(need in self._train for need in rep.needs):
                self(self.fit_split, rep.needs)
            self._states[rep] = seeded(0, lambda: rep.fit(self._train.only(rep.needs, repr(rep))))
        return self._states[rep]

    def _key(self, split: Split, rep: Representation[Any]) -> str:
        data = split.fingerprint if rep.per_image else ""
        fitted = self.fit_split.fingerprint if rep.needs else ""
        return make_key(self.network.digest, data, fitted, rep, *sources_of(rep), room())


def _asked(wanted: Sequence[Wanted]) -> list[tuple[Split, Tensor]]:
    """Each split once, with all images that are asked for, ascending; the first where none is, for its rows' shape."""
    masks: dict[str, tuple[Split, Tensor]] = {}
    for split, index in wanted:
        _, mask = masks.setdefault(split.fingerprint, (split, torch.zeros(len(split), dtype=torch.bool)))
        if index is None:
            mask[:] = True
        elif len(index):
            if int(index.min()) < 0:
                raise IndexError(f"{split.name}: no image {int(index.min())}")
            mask[index] = True
    for _, mask in masks.values():
        mask[0] |= not mask.any()
    return [(split, mask.nonzero().squeeze(1)) for split, mask in masks.values()]


def _lack(rep: Representation[Any], rows: Rows, images: Tensor) -> Tensor:
    """Which images to look at, bool `[n]`: one is enough for what belongs to the network."""
    lack = rows.lack(images)
    return lack if rep.per_image else lack & (torch.arange(len(images)) == 0)


def seeded(seed: int, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state that `work` gives when torch's random numbers start from a seed; the caller's are left as they were.

    Its tensors are contiguous, as they come back from a file: memory layout changes the last bits of a product.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = work()
    if not isinstance(state, dict):
        raise UserError(f"fit returned a {type(state).__name__}; it must return a dict of tensors")
    return {key: v.contiguous() if isinstance(v, Tensor) else v for key, v in state.items()}


def accuracy(reps: Reps, labels: Tensor) -> float:
    """Top-1 accuracy, 0 to 1."""
    return float((reps[Logits()].argmax(1) == labels).double().mean())
