"""A suite's images: its splits that are on this machine, and the shifts that they make."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any
from zlib import crc32

import numpy as np
import torch

from .corruptions import CORRUPTIONS
from .data import Dataset
from .errors import FAULTS, MissingData, UserError, told
from .images import Images, Joined, Subset, as_images
from .protocol import Shift
from .sources import Part, num_classes, resolve
from .split import Split
from .suite import ShiftSpec, Suite
from .synthetic import Synthetic


@dataclass
class Material:
    """What a suite looks at.

    Attributes:
        splits: by name: `train`, `test`, perhaps `val` and `synthetic`, and one a shift.
        classes: how many the training images have.
        missing: shifts that are left out, and why.
        broken: those of them whose data set broke.
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
        for name, split in found.items():
            strange = [label for label in (split.images.y.max(), split.images.y.min()) if not 0 <= label < self.classes]
            if strange:
                raise UserError(
                    f"id: {name} has the label {strange[0]}, but training {self.classes} classes, counted from 0; give"
                    " matching sets"
                )
        for one, other in combinations(found, 2):
            if found[one].fingerprint == found[other].fingerprint:
                raise UserError(
                    f"id: {one} and {other} are the same images, and a method is not judged by what it was fitted on;"
                    f" give each its own, as in {{ {one} = …, {other} = … }}"
                )
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
                self.leave_out(spec.name, told(error))
                self.broken[spec.name] = told(error)
        self.splits = {**found, **self._corrupted(found["test"].images)}
        if "leave-one-out" in suite.chosen_protocols():
            self._refuse_a_kind_twice()

    def _known(self, name: str, source: Dataset) -> Split:
        """A split of the in-distribution data. UserError where the data set has no such split."""
        if name not in source.splits:
            raise UserError(f"id: {source.name} has no {name} images, only {', '.join(source.splits)}; name others")
        return self._split(name, source.split(name))

    def _refuse_a_kind_twice(self) -> None:
        """A whole corrupted set beside some of its kinds: leaving one out would leave its images in the other."""
        held = {shift.name: self._within.get(shift.name, {shift.kind}) for shift in self.shifts(self.splits)}
        for (one, kinds), (other, more) in combinations(held.items(), 2):
            both = sorted(kinds & more)
            if both and not {one, other}.isdisjoint(self._within):
                raise UserError(
                    f"shifts '{one}' and '{other}' both hold {both[0]}, which leave-one-out is to leave out; name the"
                    f" parts of a corrupted set (as in cifar10-c:{both[0]}:3), or `protocols` without it"
                )

    def leave_out(self, shift: str, why: str) -> None:
        """Note that a shift is not looked at, and say so once."""
        if self.missing.get(shift) != why:
            self.missing[shift] = why
            print(f"howsure: shift '{shift}' left out: {why}", file=sys.stderr)

    def shifts(self, among: Collection[str]) -> list[Shift]:
        """The shifts whose splits are among those named."""
        found = [self._shift(spec) for spec in self.suite.shift if spec.name in among]
        if self.suite.corruptions:
            for kind in self.suite.corruptions.types:
                for severity in self.suite.corruptions.severities:
                    found.append(Shift(f"{kind}@{severity}", kind, CORRUPTIONS[kind], "corruption", severity))
        return [shift for shift in found if shift.name in among]

    def _shift(self, spec: ShiftSpec) -> Shift:
        """All severities of a published corruption are one kind; it and a whole set are corruptions unless the suite
        says otherwise."""
        if spec.name not in self._published:
            return Shift(spec.name, spec.name, spec.group, spec.task)
        kind, severity = self._published[spec.name]
        given = spec.model_fields_set
        group = spec.group if "group" in given else CORRUPTIONS.get(kind, "corruption")
        return Shift(spec.name, kind, group, spec.task if "task" in given else "corruption", severity)

    def _beside(self, test: Split, split: Split, source: Any) -> Split:
        """A published corrupted set, image by image beside the clean ones where it has as many, or several times as
        many, of the same classes."""
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
                " its corrupted copy may be in different parts; only `none` is safe",
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
        """A split, of at most `max_images` images, drawn from the whole of it."""
        images = as_images(images, name)
        if not len(images):
            raise UserError(f"{name}: the split is empty; give it at least one image")
        most = self.suite.max_images
        if most and len(images) > most:
            index = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most].sort().values
            images = Subset(images, index.numpy())
        return Split(name, images)
