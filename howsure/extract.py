"""Representations of splits, computed once an image: what is stored is not redone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from .contained import contained
from .errors import UserError
from .forward import Progress, run_pass
from .keys import make_key, room, sources_of, values_of
from .network import Network
from .representation import Representation, Reps
from .representations import Logits
from .rows import Rows, passes
from .split import Pixels, Split, load
from .store import Memory, Store


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
    `fit_split` is the in-distribution training split, which fitted representations are fitted on; `fit_index` are those
    of its images that they see, None for all.
    """

    fit_index: Tensor | None = None
    _fit_key = ""

    def __init__(self, network: Network, store: Store | None, fit_split: Split, pixels: Pixels | None = None) -> None:
        self.network, self.fit_split = network, fit_split
        self.store: Store | Memory | None = store
        self._pixels = pixels or Pixels()
        self._states: dict[Representation[Any], dict[str, Tensor]] = {}
        self._train = Reps({})
        self._read: dict[str, Rows] = {}
        self._apart: dict[str, Extractor] = {}

    def fitted_on(self, index: Tensor) -> Extractor:
        """The same, whose fitted representations see the training images at `index` alone."""
        key = make_key(index.tolist())
        if key not in self._apart:
            self._apart[key] = apart = copy.copy(self)
            apart.fit_index, apart._fit_key, apart._states, apart._train = index, key, {}, Reps({})
        return self._apart[key]

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
            if index is self.fit_index and split == self.fit_split:
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
        # gradients last: what an interruption leaves out is computed beside them then too, to the same last bits
        for split, rep in product((split for split, _ in asked), sorted(reps, key=lambda rep: bool(rep.losses()))):
            if found[split.fingerprint, rep] is not there[split.fingerprint, rep]:
                found[split.fingerprint, rep] = self._keep(split, rep, found[split.fingerprint, rep])
        return found

    def _look(
        self, seen: Sequence[tuple[Split, Tensor]], reps: Sequence[Representation[Any]], progress: Progress
    ) -> Found:
        """One pass over some images of several splits."""
        loaded = load([self._pixels(split, self.network, images.tolist()) for split, images in seen], self.network)
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
        key = self._key(split, rep)
        rows = self._read.get(key, Rows())
        if self.store and rows.lack(images).any():
            arrays = self.store.get(key)
            if arrays is not None:
                rows = self._read[key] = Rows.from_file(arrays)
        return rows

    def _keep(self, split: Split, rep: Representation[Any], rows: Rows) -> Rows:
        """Store rows; returns them as they are mapped from there, so that no memory is theirs alone."""
        if not self.store:
            return rows
        key = self._key(split, rep)
        try:
            self.store.put(key, rows.to_file())
        except (OSError, SafetensorError) as error:
            print(f"howsure: representations are kept in memory, not on disk: {error}", file=sys.stderr)
            self.store = Memory()
            self.store.put(key, rows.to_file())
        self._read.pop(key, None)
        kept = Rows.from_file(self.store.get(key) or {})
        if _same(kept.index, rows.index) and kept.arrays.keys() == rows.arrays.keys():
            return kept
        return rows

    def state(self, rep: Representation[Any]) -> dict[str, Tensor]:
        """The state of a fitted representation."""
        if rep not in self._states:
            if not all(need in self._train for need in rep.needs):
                self(self.fit_split, rep.needs, self.fit_index)
            self._states[rep] = seeded(0, lambda: rep.fit(self._train.only(rep.needs, repr(rep))))
        return self._states[rep]

    def _key(self, split: Split, rep: Representation[Any]) -> str:
        data = split.fingerprint if rep.per_image else ""
        fitted = self.fit_split.fingerprint + self._fit_key if rep.needs else ""
        return make_key(self.network.digest, data, fitted, *values_of(rep), *sources_of(rep), room())


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


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _lack(rep: Representation[Any], rows: Rows, images: Tensor) -> Tensor:
    """Which images to look at, bool `[n]`: one is enough for what belongs to the network."""
    lack = rows.lack(images)
    return lack if rep.per_image else lack & (torch.arange(len(images)) == 0)


def seeded(seed: int, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state that `work` gives when torch's and numpy's random numbers start from a seed; the caller's are left as
    they were.

    Its tensors are contiguous, as they come back from a file: memory layout changes the last bits of a product.
    """
    drawn = np.random.get_state()
    try:
        with contained(), torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            np.random.seed(seed)
            state = work()
    finally:
        np.random.set_state(drawn)
    if not isinstance(state, dict):
        raise UserError(f"fit returned a {type(state).__name__}; it must return a dict of tensors")
    return {key: v.contiguous() if isinstance(v, Tensor) else v for key, v in state.items()}


def accuracy(reps: Reps, labels: Tensor) -> float:
    """Top-1 accuracy, 0 to 1."""
    return float((reps[Logits()].argmax(1) == labels).double().mean())
