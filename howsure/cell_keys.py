"""The keys that the cells of a suite are stored under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .keys import hash_file, make_key, room, sources_of, values_of
from .material import Material
from .method import Method
from .results import CellName
from .suite import Suite


@dataclass
class CellKeys:
    """Hashes of everything that a cell is made from: its network, images, method, protocol and seed, and all code."""

    suite: Suite
    methods: Mapping[str, Method]
    material: Material

    def key(self, digest: str, name: CellName) -> str:
        """The key of a cell, given the digest of its network."""
        return make_key(digest, *self._all_but_network(name))

    def setting(self, name: CellName) -> str:
        """A key that needs no loaded network: what the suite says of it, and the files named there, stand for it."""
        return make_key(self._said_of_network[name.backbone], *self._all_but_network(name))

    @cached_property
    def _said_of_network(self) -> dict[str, list[object]]:
        found: dict[str, list[object]] = {}
        for spec in self.suite.backbone:
            named = (spec.use.rpartition(":")[0], self.suite.checkpoint(spec) or "")
            files = [self.suite.base / Path(one).expanduser() for one in named]
            found[spec.name] = [spec, *(hash_file(file) for file in files if file.is_file())]
        return found

    def _all_but_network(self, name: CellName) -> list[object]:
        splits, method = self.material.splits, self.methods[name.method]
        images = [f"{split} {images.fingerprint}" for split, images in splits.items()]
        code = (*sources_of(method), room())
        how = [*values_of(method), *method.grid, self.suite.name, self.suite.id.test, name.protocol, name.seed]
        return [*how, *code, *self.material.shifts(splits), *images]
