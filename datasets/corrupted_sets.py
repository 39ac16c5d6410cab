"""Published corrupted images, read from folders in the data root: CIFAR-10-C, CIFAR-100-C, ImageNet-C, CURE-TSR.

Each has `at(kind, severity)`; suites name such a part as `cifar10-c:KIND:SEVERITY`. Except in CURE-TSR, `test` is all
parts together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from howsure import Dataset, FolderImages, Images, MissingData, UserError
from howsure.corruptions import CORRUPTIONS
from howsure.data import data_root
from howsure.errors import unknown, why
from howsure.image_files import FileImages
from howsure.images import Joined

SEVERITIES = range(1, 6)


class _Corrupted(Dataset):
    """A data set of corrupted images by kind and severity."""

    source = "folder"
    folder: ClassVar[str]
    where: ClassVar[str]

    def kinds(self) -> list[str]:
        """The kinds of corruption that are on this machine."""
        raise NotImplementedError

    def within(self) -> list[str]:
        """The kinds of corruption that `test` consists of."""
        return self.kinds()

    def part(self, kind: str, severity: int) -> Images:
        """The images of one kind at one severity from 1 to 5."""
        raise NotImplementedError

    def at(self, kind: str, severity: int) -> Images:
        """The images of one kind at one severity from 1 to 5.

        Raises:
            MissingData: the data set is not on this machine. UserError: it has no such kind or severity.
        """
        self.require("test")
        if kind not in self.kinds():
            raise unknown("corruption", kind, self.kinds(), str(self.root))
        if severity not in SEVERITIES:
            raise UserError(f"{self.name}: severity {severity} must be from 1 to 5")
        return self.part(kind, severity)

    def split(self, name: str) -> Images:
        self.require(name)
        if not self.kinds():
            raise MissingData(f"{self.name}: no corrupted images in {self.root}; unpack {self.where} there")
        return Joined([self.at(kind, severity) for kind in self.kinds() for severity in SEVERITIES])

    def missing(self) -> str | None:
        if self.root.is_dir():
            return None
        return f"{self.name}: no folder {self.root}; unpack {self.where} there"

    @property
    def root(self) -> Path:
        return data_root() / self.folder


class CIFAR10C(_Corrupted):
    """CIFAR-10-C: the 10,000 test images under 19 corruptions. Hendrycks & Dietterich, 2019, arXiv:1903.12261.

    `CIFAR-10-C/<kind>.npy`, uint8 `[50000, 32, 32, 3]`, severities 1 to 5 one after the other, and `labels.npy`.
    """

    name = "cifar10-c"
    folder = "CIFAR-10-C"
    where = "CIFAR-10-C.tar of zenodo.org/records/2535967"

    def kinds(self) -> list[str]:
        return sorted(file.stem for file in self.root.glob("*.npy") if file.stem != "labels")

    def part(self, kind: str, severity: int) -> Images:
        return NpyPart(self.root / f"{kind}.npy", self.root / "labels.npy", severity)


class CIFAR100C(CIFAR10C):
    """CIFAR-100-C: the 10,000 test images under 19 corruptions. Hendrycks & Dietterich, 2019, arXiv:1903.12261."""

    name = "cifar100-c"
    folder = "CIFAR-100-C"
    where = "CIFAR-100-C.tar of zenodo.org/records/3555552"


class ImageNetC(_Corrupted):
    """ImageNet-C: the 50,000 validation images under 19 corruptions. Hendrycks & Dietterich, 2019, arXiv:1903.12261.

    `ImageNet-C/<kind>/<severity>/<wnid>/`, or below the archives' families, as in `ImageNet-C/blur/<kind>/…`.
    """

    name = "imagenet-c"
    folder = "ImageNet-C"
    where = "the archives of zenodo.org/records/2235448"

    def kinds(self) -> list[str]:
        return [kind for kind in CORRUPTIONS if self._folder(kind)]

    def part(self, kind: str, severity: int) -> Images:
        folder = self._folder(kind)
        assert folder is not None
        return FolderImages(folder / str(severity))

    def _folder(self, kind: str) -> Path | None:
        places = (self.root / kind, *(folder / kind for folder in sorted(self.root.iterdir())))
        return next((place for place in places if (place / "1").is_dir()), None)


class CureTSR(_Corrupted):
    """CURE-TSR: traffic signs of 14 types under 12 challenging conditions. Temel et al., 2017, arXiv:1712.02463.

    Files may be in any folders below `CURE-TSR`; their names, `sequence_sign_challenge_level_index.bmp` with leading
    zeros, describe them. Only real scenes are read (sequence 01). `train` and `test` are the challenge-free images
    (challenge 00) below folders whose names contain `Train` and `Test`; the challenges are read from the latter.
    """

    name = "cure-tsr"
    folder = "CURE-TSR"
    where = "the archives of github.com/olivesgatech/CURE-TSR"
    splits = ("train", "test")
    challenges: ClassVar[tuple[str, ...]] = (
        "clean", "decolorization", "lens_blur", "codec_error", "darkening", "dirty_lens", "exposure", "gaussian_blur",
        "noise", "rain", "shadow", "snow", "haze",
    )  # fmt: skip
    classes: Sequence[str] = (
        "speed_limit", "goods_vehicles", "no_overtaking", "no_stopping", "no_parking", "stop", "bicycle", "hump",
        "no_left", "no_right", "priority_to", "no_entry", "yield", "parking",
    )  # fmt: skip

    def kinds(self) -> list[str]:
        found = {challenge for split, challenge, _ in self._index if split == "test"}
        return [kind for number, kind in enumerate(self.challenges) if number and number in found]

    def within(self) -> list[str]:
        return []

    def part(self, kind: str, severity: int) -> Images:
        return self._images("test", self.challenges.index(kind), severity)

    def split(self, name: str) -> Images:
        self.require(name)
        return self._images(name, 0, 0)

    def _images(self, split: str, challenge: int, level: int) -> Images:
        files = self._index.get((split, challenge, level), [])
        if not files:
            what = f"{self.challenges[challenge]} at level {level}" if challenge else "challenge-free images"
            raise UserError(
                f"{self.root}: no {what} of real scenes below a folder named '…{split.title()}…';"
                f" unpack {self.where} there"
            )
        return FileImages([file for file, _ in files], [sign - 1 for _, sign in files], self.root)

    @cached_property
    def _index(self) -> dict[tuple[str, int, int], list[tuple[Path, int]]]:
        """Files of real scenes with their sign types, by (split, challenge, level)."""
        index: dict[tuple[str, int, int], list[tuple[Path, int]]] = {}
        for file in sorted(self.root.rglob("*.bmp")):
            found = re.fullmatch(r"01_(\d\d)_(\d\d)_(\d\d)_\d+", file.stem)
            folders = str(file.parent.relative_to(self.root)).lower()
            split = next((name for name in self.splits if name in folders), None)
            if found and split:
                sign, challenge, level = map(int, found.groups())
                index.setdefault((split, challenge, level), []).append((file, sign))
        return index


class NpyPart(Images):
    """One severity from a `.npy` of images; each is read from disk when it is asked for."""

    def __init__(self, file: Path, labels: Path, severity: int) -> None:
        x, y = _npy(file), _npy(labels)
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) % len(SEVERITIES) or y.shape != (len(x),):
            raise UserError(
                f"{file}: expected uint8 [5 N, H, W, 3] and as many labels; got {x.dtype} {list(x.shape)} and labels"
                f" {list(y.shape)}; unpack it again"
            )
        n = len(x) // len(SEVERITIES)
        self.file, self.start = file, n * (severity - 1)
        self.x, self.y = x[self.start : self.start + n], np.array(y[self.start : self.start + n], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.array(self.x[index])), int(self.y[index])

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        stat = self.file.stat()
        labels = hashlib.sha256(self.y.tobytes()).hexdigest()
        return f"{self.file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {self.start} {labels}"


def _npy(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not a readable .npy ({why(error)}); unpack it again") from error
