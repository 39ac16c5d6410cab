"""From the name of a data set in a suite or on the command line to the data set itself."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .data import Dataset, data_root, located
from .errors import UserError, why
from .image_files import FileImages, FolderImages
from .images import ArrayImages, Images
from .plugins import DATASETS

SPLITS = ("train", "val", "test")
MOST_CLASSES = 100_000
_UNREADABLE = (
    OSError, ValueError, EOFError, AttributeError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class ImageFolder(Dataset):
    """`imagefolder:PATH`: a folder of images, flat or with one sub-folder per class.

    Sub-folders of PATH called `train`, `val` or `test` are its splits; without any, the whole folder serves as every
    split. All splits use the class order of `train`, or of `classes` if given.
    """

    source = "folder"

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self.path, self.name = path, f"imagefolder:{path}"  # type: ignore[misc]
        self._classes = list(classes) if classes else None

    @cached_property
    def parts(self) -> dict[str, Path]:
        """The folder of each split that has its own."""
        return {name: self.path / name for name in SPLITS if (self.path / name).is_dir()}

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.parts) or SPLITS

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]
        first = next(iter(self.parts.values()), self.path)
        return self._classes or FolderImages(self.parts.get("train", first)).classes

    def split(self, name: str) -> FolderImages:
        """The images of a split. Raises UserError if the folder, the split, or its images are missing, or if it has a
        class that is not in `train`."""
        reason = self.missing()
        if reason:
            raise UserError(reason)
        if not self.parts:
            return FolderImages(self.path, self._classes)
        if name not in self.parts:
            raise UserError(f"{self.path}: no folder '{name}' in it; it has {', '.join(self.parts)}")
        return FolderImages(self.parts[name], self.classes if "train" in self.parts else self._classes)

    def missing(self) -> str | None:
        return None if self.path.is_dir() else f"{self.path}: no such folder; put the images there or name another"


class Part(Dataset):
    """`NAME:KIND:SEVERITY`: the images of one kind and severity of a published corrupted set."""

    source = "folder"

    def __init__(self, whole: Any, kind: str, severity: int) -> None:
        self.whole, self.kind, self.severity = whole, kind, severity
        self.name, self.classes = f"{whole.name}:{kind}:{severity}", whole.classes  # type: ignore[misc]

    def split(self, name: str) -> Images:
        return self.whole.at(self.kind, self.severity)

    def missing(self) -> str | None:
        return self.whole.missing()


class Npz(Dataset):
    """`npz:PATH`: uint8 `x` `[N, H, W]` or `[N, H, W, C]` with C 1 or 3, and integer labels `y` `[N]` from 0.

    One file serves as every split. Pickled objects are refused.
    """

    source = "npz"
    splits = SPLITS

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, f"npz:{path}"  # type: ignore[misc]

    @cached_property
    def images(self) -> ArrayImages:
        reason = self.missing()
        if reason:
            raise UserError(reason)
        x, y = self._arrays()
        images = ArrayImages(x, y, where=str(self.path))
        if not len(images):
            raise UserError(f"{self.path}: x holds no image; save at least one")
        if min(images.x.shape[1:]) == 0:
            raise UserError(f"{self.path}: images of {list(images.x.shape[1:])} have no pixel; save larger ones")
        if images.y.min() < 0:
            raise UserError(f"{self.path}: label {images.y.min()} in y; number the classes from 0")
        return images

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        largest = int(self.images.y.max())
        if largest >= MOST_CLASSES:
            raise UserError(f"{self.path}: label {largest} in y; number the classes from 0 without large gaps")
        return [str(label) for label in range(largest + 1)]

    def split(self, name: str) -> ArrayImages:
        """All images, whichever split is asked for. Raises UserError if the file is not as described."""
        return self.images

    def missing(self) -> str | None:
        return None if self.path.is_file() else f"{self.path}: no such file; put it there or name another"

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        if self.path.exists() and not zipfile.is_zipfile(self.path):
            raise UserError(f"{self.path}: not an .npz archive; write it with np.savez(file, x=…, y=…)")
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                missing = [key for key in ("x", "y") if key not in arrays]
                if missing:
                    has = ", ".join(arrays.files) or "nothing"
                    raise UserError(f"{self.path}: no array '{missing[0]}' in it (it has {has}); save x and y")
                return arrays["x"], arrays["y"]
        except _UNREADABLE as error:
            raise UserError(f"{self.path}: not a readable .npz of plain arrays ({why(error)}); use np.savez") from error


class ImageList(Dataset):
    """`imglist:FILE`: a text file with one line per image: its path, and its class index from 0 or -1 for no class.

    This is OpenOOD's format. Paths start from the file's folder. Below a folder `benchmark_imglist` they start from
    whichever folder beside it (`images_classic`, `images_largescale`, …) holds the first image, as in OpenOOD. One file
    serves every split.
    """

    source = "folder"
    splits = SPLITS

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, f"imglist:{file}"  # type: ignore[misc]

    @cached_property
    def entries(self) -> list[tuple[str, int]]:
        """The path and label of each image. UserError where there is no such file, or a line is not as described."""
        try:
            lines = self.file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.file}: not a readable list of images ({why(error)}), nor is there one below the data root"
                f" {data_root()}; put lists and images in either place"
            ) from error
        return [self._entry(number, line) for number, line in enumerate(lines, 1) if line.strip()]

    @cached_property
    def folder(self) -> Path:
        """The folder that the paths are taken from."""
        above = next((folder for folder in self.file.parents if folder.name == "benchmark_imglist"), None)
        beside = sorted(above.parent.glob("images_*")) if above else []
        return next((place for place in beside if (place / self.entries[0][0]).exists()), self.file.parent)

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        return [str(label) for label in range(max((label for _, label in self.entries), default=-1) + 1)]

    def split(self, name: str) -> FileImages:
        """All images, whichever split is asked for.

        Raises:
            MissingData: the first image is not there. UserError: the file is not as described.
        """
        self.require(name)
        paths = [self.folder / path for path, _ in self.entries]
        return FileImages(paths, [label for _, label in self.entries], self.folder)

    def missing(self) -> str | None:
        if not self.entries:
            raise UserError(f"{self.file}: no image in it; give a line an image, its path and its class index")
        first = self.folder / self.entries[0][0]
        return None if first.exists() else f"{self.file}: no {first}, its first image; unpack the images there"

    def _entry(self, number: int, line: str) -> tuple[str, int]:
        entry = re.fullmatch(r"(.+?)\s+(-1|\d+)", line.strip())
        if not entry or int(entry[2]) >= MOST_CLASSES:
            raise UserError(
                f"{self.file}: line {number} is '{line.strip()}'; give the image's path and its class index"
            )
        return entry[1], int(entry[2])


SCHEMES = {"imagefolder": ImageFolder, "npz": Npz, "imglist": ImageList}


def resolve(spec: str, base: Path = Path(), classes: Sequence[str] | None = None) -> Dataset:
    """The data set that `spec` names: a registered name, `imagefolder:PATH`, `npz:PATH`, `imglist:PATH` or
    `NAME:KIND:SEVERITY`.

    Args:
        base: the folder that a relative PATH starts from, or the data root if it exists only there.
        classes: those of the training set, in label order; the class folders of an `imagefolder:` must be among them.

    Raises:
        UserError: there is no such data set; the message names the nearest ones.
    """
    scheme, colon, path = spec.partition(":")
    if colon and scheme in SCHEMES:
        if not path:
            raise UserError(f"'{spec}': give a path after the colon, as in {scheme}:PATH")
        place = located(path, base)
        return ImageFolder(place, classes) if scheme == "imagefolder" else SCHEMES[scheme](place)
    if colon and scheme in DATASETS and hasattr(DATASETS[scheme], "at"):
        kind, _, severity = path.partition(":")
        if not severity.isdecimal():
            raise UserError(f"'{spec}': write {scheme}:KIND:SEVERITY, as in {scheme}:fog:3")
        return Part(DATASETS[scheme](), kind, int(severity))
    if spec not in DATASETS and (base / spec).exists():
        kind = "npz" if spec.endswith(".npz") else "imagefolder"
        raise UserError(f"'{spec}' is a path; write {kind}:{spec}")
    return DATASETS[spec]()


def num_classes(source: Dataset, images: Images) -> int:
    """The number of classes of a data set: those it names, else one more than the largest label of `images`."""
    return len(source.classes) or 1 + int(images.y.max())
