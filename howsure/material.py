"""A suite's images: the splits that are on this machine, and the shifts they make up."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any
from zlib import crc32

import numpy as np
import torch

from .corruptions import CORRUPTIONS
from .data import Dataset
from .errors import FAULTS, MissingData, UserError, described
from .images import Images, Joined, Subset, as_images
from .protocol import Shift
from .sources import Part, num_classes, resolve
from .split import Split
from .suite import ShiftSpec, Suite
from .synthetic import Synthetic


@dataclass
class Material:
    """A suite's images.

    Attributes:
        splits: by name: `train`, `test`, perhaps `val` and `synthetic`, and one per shift.
        classes: the number of classes of the training data.
        missing: shifts that are left out, and why.
        broken: those of them whose data set raised an error.
    """

    suite: Suite
    splits: dict[str, Split] = field(init=False)
    classes: int = field(init=False)
    missing: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    _published: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    _within: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        suite, base = self.suite, self.suite.base
        train = resolve(suite.id.train, base)
        test = resolve(suite.id.test, base, train.classes)
        found = {name: self._known(name, source) for name, source in (("train", train), ("test", test))}
        self.classes = num_classes(train, found["train"].images)
        val = resolve(suite.id.val, base, train.classes) if suite.id.val else None
        if val is not None and (suite.id.val != suite.id.train or "val" in val.splits):
            found["val"] = self._known("val", val)
        self._check_labels(found)
        _check_distinct(found)
        if "synthetic" in suite.chosen_protocols():
            found["synthetic"] = Split("synthetic", Synthetic(found["train"].images))
        for spec in suite.shift:
            try:
                source = resolve(spec.data, base)
                found[spec.name] = self._beside(found["test"], self._split(spec.name, source.split("test")), source)
            except UserError as error:
                if not isinstance(error, MissingData):
                    raise
                self.leave_out(spec.name, str(error))
            except FAULTS as error:
                self.break_off(spec.name, described(error))
        self.splits = {**found, **self._corrupted(found["test"].images)}
        if "leave-one-out" in suite.chosen_protocols():
            self._refuse_a_kind_twice()

    def _known(self, name: str, source: Dataset) -> Split:
        """A split of the in-distribution data. Raises UserError if the data set has no such split."""
        if name not in source.splits:
            raise UserError(
                f"id: {source.name} has no split '{name}', only {', '.join(source.splits)}; name another data set"
            )
        return self._split(name, source.split(name))

    def _check_labels(self, known: Mapping[str, Split]) -> None:
        for name, split in known.items():
            wrong = [label for label in (split.images.y.max(), split.images.y.min()) if not 0 <= label < self.classes]
            if wrong:
                raise UserError(
                    f"id: {name} has the label {wrong[0]}, but training has {self.classes} classes, counted from 0;"
                    " give matching data sets"
                )

    def _refuse_a_kind_twice(self) -> None:
        """Refuse a whole corrupted set beside some of its kinds: leaving one out would keep its images in the other."""
        held = {shift.name: self._within.get(shift.name, {shift.kind}) for shift in self.shifts(self.splits)}
        for (one, kinds), (other, more) in combinations(held.items(), 2):
            both = sorted(kinds & more)
            if both and not {one, other}.isdisjoint(self._within):
                raise UserError(
                    f"shifts '{one}' and '{other}' both contain {both[0]}, so leave-one-out cannot leave it out; name"
                    f" parts of the corrupted set (as in cifar10-c:{both[0]}:3), or list `protocols` without it"
                )

    def leave_out(self, shift: str, why: str) -> None:
        """Record that a shift is left out, and say so once."""
        if self.missing.get(shift) != why:
            self.missing[shift] = why
            print(f"howsure: shift '{shift}' left out: {why}", file=sys.stderr)

    def break_off(self, shift: str, why: str) -> None:
        """Leave out a shift whose images cannot all be read; the run then counts as failed."""
        self.broken[shift] = why
        self.leave_out(shift, why)

    def shifts(self, among: Collection[str]) -> list[Shift]:
        """The shifts whose splits are among those named, in the suite's order."""
        found = [self._shift(spec) for spec in self.suite.shift if spec.name in among]
        if self.suite.corruptions:
            for kind in self.suite.corruptions.types:
                for severity in self.suite.corruptions.severities:
                    found.append(Shift(f"{kind}@{severity}", kind, CORRUPTIONS[kind], "corruption", severity))
        return [shift for shift in found if shift.name in among]

    def _shift(self, spec: ShiftSpec) -> Shift:
        """The shift that a table of the suite describes.

        All severities of a published corruption are one kind. Parts of a published corrupted set, and a whole one, are
        corruptions unless the suite says otherwise.
        """
        if spec.name not in self._published:
            return Shift(spec.name, spec.name, spec.group, spec.task)
        kind, severity = self._published[spec.name]
        given = spec.model_fields_set
        group = spec.group if "group" in given else CORRUPTIONS.get(kind, "corruption")
        return Shift(spec.name, kind, group, spec.task if "task" in given else "corruption", severity)

    def _beside(self, test: Split, split: Split, source: Any) -> Split:
        """The split, with its clean originals if it is of a published corrupted set.

        Its images count as corrupted copies of those in `test` if its labels are the same, once or several times over.
        """
        if isinstance(source, Part):
            self._published[split.name] = source.kind, source.severity
        elif not hasattr(source, "at"):
            return split
        elif within := source.within():
            self._published[split.name], self._within[split.name] = (split.name, None), set(within)
        times = len(split) // len(test)
        if np.array_equal(split.images.y, np.tile(test.images.y, times)):
            return replace(split, clean=Joined([test.images] * times))
        if set(self.suite.chosen_protocols()) != {"none"}:
            print(
                f"howsure: shift '{split.name}': its images are not those of test in the same order, so an image and"
                " its corrupted copy may be in different parts; only protocol `none` is safe",
                file=sys.stderr,
            )
        return split

    def _corrupted(self, images: Images) -> dict[str, Split]:
        found, spec = {}, self.suite.corruptions
        for kind in spec.types if spec else ():
            order = np.random.default_rng(crc32(kind.encode())).permutation(len(images))
            for i, severity in enumerate(spec.severities if spec else ()):
                name, some = f"{kind}@{severity}", images
                if spec and spec.images and spec.images < len(images):
                    some = Subset(images, np.sort(np.roll(order, -i * spec.images)[: spec.images]))
                found[name] = Split(name, some, (kind, severity))
        return found

    def _split(self, name: str, images: Any) -> Split:
        """A split of the given images, or of `max_images` random ones if there are more."""
        images = as_images(images, name)
        if not len(images):
            raise UserError(f"{name}: the split is empty; give it at least one image")
        most = self.suite.max_images
        if most and len(images) > most:
            index = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most].sort().values
            images = Subset(images, index.numpy())
        return Split(name, images)


def _check_distinct(known: Mapping[str, Split]) -> None:
    for one, other in combinations(known, 2):
        if known[one].fingerprint == known[other].fingerprint:
            raise UserError(
                f"id: {one} and {other} are the same images, but a method must not be judged on what it was fitted on;"
                f" give each its own, as in {{ {one} = …, {other} = … }}"
            )
