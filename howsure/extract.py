"""Representations of splits, computed once per image and stored."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from .contained import contained
from .divided import divided, processes
from .errors import UserError
from .forward import Progress, run_pass
from .keys import make_key, room, sources_of, values_of
from .network import Network
from .representation import Representation, Reps
from .rows import Rows, passes
from .split import Pixels, Split, images_at_once, load
from .store import Memory, Store


def union(needs: Iterable[Sequence[Representation[Any]]]) -> list[Representation[Any]]:
    """All representations needed, each once; those that a fitted representation needs itself come before it."""
    found: dict[Representation[Any], None] = {}
    for rep in (rep for group in needs for rep in group):
        for inner in (*rep.needs, rep):
            found.setdefault(inner)
    return list(found)


Selection = tuple[Split, Tensor | None]
Found = dict[tuple[str, Representation[Any]], Rows]


class Extractor:
    """Representations of images for one network, read from the store, or computed and stored.

    No row is computed twice: when a split is read again, only its images without stored rows are processed.

    Attributes:
        fit_split: the in-distribution training split, which fitted representations are fitted on.
        fit_index: indices of the images in it that they see; None for all.
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
        """The same extractor, except that fitted representations see only the training images at `index`."""
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
        selections: Sequence[Selection],
        representations: Sequence[Representation[Any]],
        progress: Progress = lambda n: None,
    ) -> list[Reps]:
        """The representations of several splits; images that miss the same ones go through the network in one pass.

        Args:
            selections: splits, each with the indices `[n]` of images, in any order, or None for all images in order.
            progress: called with the number of images read from the store or processed.

        Raises:
            IndexError: a split has no such image.
        """
        reps, requests = list(dict.fromkeys(representations)), _merged(selections)
        found = self._found(requests, reps, progress) if reps else {}
        given = []
        for split, index in selections:
            given.append(Reps({rep: rep.unpack(found[split.fingerprint, rep].take(index)) for rep in reps}))
            if index is self.fit_index and split == self.fit_split:
                self._train = Reps({**self._train, **given[-1]})
        return given

    def _found(
        self, requests: Sequence[tuple[Split, Tensor]], reps: Sequence[Representation[Any]], progress: Progress
    ) -> Found:
        """All rows that are requested, perhaps among others; those that were not stored are computed and stored."""
        stored = {
            (split.fingerprint, rep): self._stored(split, rep, images) for split, images in requests for rep in reps
        }
        found = dict(stored)
        missing = [
            torch.stack([_missing(rep, stored[split.fingerprint, rep], images) for rep in reps], 1)
            for split, images in requests
        ]
        progress(sum(int((~some.any(1)).sum()) for some in missing))
        for mask, some in passes(torch.cat(missing), reps):
            masks = mask.split([len(images) for _, images in requests])
            todo = [(split, images[mine]) for (split, images), mine in zip(requests, masks, strict=True) if mine.any()]
            for key, rows in self._compute(todo, some, progress).items():
                found[key] = found[key].join(rows)
        # gradients are stored last: after an interruption, the rest is then recomputed with them, to the same last bit
        for split, rep in product((split for split, _ in requests), sorted(reps, key=lambda rep: bool(rep.losses()))):
            if found[split.fingerprint, rep] is not stored[split.fingerprint, rep]:
                found[split.fingerprint, rep] = self._keep(split, rep, found[split.fingerprint, rep])
        return found

    def _compute(
        self, todo: Sequence[tuple[Split, Tensor]], reps: Sequence[Representation[Any]], progress: Progress
    ) -> Found:
        """The rows of some images of several splits, from one pass over all of them."""
        prepared = [self._pixels(split, self.network, images.tolist()) for split, images in todo]
        n = processes(self.network.device)
        loaded = load(prepared, self.network, images_at_once(self.network, n))
        states = {rep: self.state(rep) for rep in reps if rep.needs}
        computed = run_pass(self.network, loaded, reps, states, progress, partial(divided, n=n))
        sizes, found = [len(images) for _, images in todo], {}
        for rep, (i, (split, images)) in product(reps, enumerate(todo)):
            arrays = rep.pack(computed[rep])
            mine = {key: value.split(sizes)[i] for key, value in arrays.items()} if rep.per_image else arrays
            found[split.fingerprint, rep] = Rows(mine, images if rep.per_image else None)
        return found

    def _stored(self, split: Split, rep: Representation[Any], images: Tensor) -> Rows:
        """The rows already computed; the file is read again if those in memory do not cover all of the images."""
        key = self._key(split, rep)
        rows = self._read.get(key, Rows())
        if self.store and rows.missing(images).any():
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
        """The state of a fitted representation, fitted if need be."""
        if rep not in self._states:
            if not all(need in self._train for need in rep.needs):
                self(self.fit_split, rep.needs, self.fit_index)
            self._states[rep] = seeded(0, lambda: rep.fit(self._train.only(rep.needs, repr(rep))))
        return self._states[rep]

    def _key(self, split: Split, rep: Representation[Any]) -> str:
        data = split.fingerprint if rep.per_image else ""
        fitted = self.fit_split.fingerprint + self._fit_key if rep.needs else ""
        return make_key(self.network.digest, data, fitted, *values_of(rep), *sources_of(rep), room())


def _merged(selections: Sequence[Selection]) -> list[tuple[Split, Tensor]]:
    """Each split once, with the ascending indices of all images requested.

    If none is, it has that of the first image, since rows are needed for their shape.
    """
    masks: dict[str, tuple[Split, Tensor]] = {}
    for split, index in selections:
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


def _missing(rep: Representation[Any], rows: Rows, images: Tensor) -> Tensor:
    """Which images to process, bool `[n]`: for a representation that belongs to the network, one is enough."""
    missing = rows.missing(images)
    return missing if rep.per_image else missing & (torch.arange(len(images)) == 0)


def seeded(seed: int, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state that `work` returns when torch's and numpy's random numbers start from `seed`.

    The caller's random numbers continue as if nothing had happened. Tensors are made contiguous, as they would come
    back from a file, since the memory layout affects the last bits of a product.
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
