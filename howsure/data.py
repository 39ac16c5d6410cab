"""Image data: what a data set gives, and the two stores that any data set can be read from (arrays and folders)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset as TorchDataset

from .errors import MissingData, UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


def data_root() -> Path:
    """The folder that data sets live under: `$HOWSURE_DATA`, else `~/.cache/howsure/data`."""
    return Path(os.environ.get("HOWSURE_DATA") or cache_root() / "data").expanduser()


def cache_root() -> Path:
    """The folder for trained networks and stored representations: `$HOWSURE_CACHE`, else `~/.cache/howsure`."""
    return Path(os.environ.get("HOWSURE_CACHE") or "~/.cache/howsure").expanduser()


class Images(TorchDataset[tuple[Image.Image, int]]):
    """A torch data set of `(PIL image, class index)` pairs that knows what it is made of.

    `fingerprint` changes whenever any image or label does.
    """

    fingerprint: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        raise NotImplementedError


class ArrayImages(Images):
    """Images in memory: `x` uint8 `[N, H, W]` or `[N, H, W, C]` with C 1 or 3, `y` integers `[N]` (zeros if None)."""

    def __init__(self, x: np.ndarray, y: np.ndarray | Sequence[int] | None = None, where: str = "array") -> None:
        labels = np.zeros(len(x), dtype=np.int64) if y is None else np.asarray(y)
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise UserError(
                f"{where}: images must be uint8 [N, H, W] or [N, H, W, C] with C 1 or 3; got {x.dtype} {list(x.shape)}"
            )
        if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{where}: labels must be integers [{len(x)}]; got {labels.dtype} {list(labels.shape)}")
        self.x = np.ascontiguousarray(x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x)
        self.y = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.x[index]), int(self.y[index])

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return hashlib.sha256(self.x.tobytes() + self.y.tobytes() + str(self.x.shape).encode()).hexdigest()


class FolderImages(Images):
    """A folder with one sub-folder a class, or a flat folder of images (all of class 0).

    `classes` fixes the class order (names of sub-folders); left out, it is alphabetical.

    Raises:
        MissingData: there is no such folder. UserError: it holds no image, or a class that `classes` lacks.
    """

    def __init__(self, folder: str | Path, classes: Sequence[str] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise MissingData(f"{self.folder}: no such folder; put the images there or name another")
        found = sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir())
        self.classes = list(classes or found)
        strangers = sorted(set(found) - set(self.classes))
        if strangers:
            raise UserError(f"{self.folder}: class '{strangers[0]}' is not one of the network's {len(self.classes)}")
        self.files = [
            (file, label)
            for label, folder_name in enumerate(self.classes or ["."])
            for file in sorted((self.folder / folder_name).rglob("*"))
            if file.suffix.lower() in EXTENSIONS
        ]
        if not self.files:
            raise UserError(f"{self.folder}: no image in it; expected files ending in {' '.join(EXTENSIONS)}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.files[index]
        try:
            with Image.open(file) as image:
                image.load()
                return image, label
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{file}: not a readable image ({error}); repair or remove it") from error

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        digest = hashlib.sha256()
        for file, label in self.files:
            stat = file.stat()
            digest.update(f"{file.relative_to(self.folder)} {label} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class Subset(Images):
    """Some images of another set, by index."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[int(self.indices[index])]

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return hashlib.sha256(self.images.fingerprint.encode() + self.indices.tobytes()).hexdigest()


class Dataset:
    """A source of images. Subclasses give `split`; those that live on disk also `status` and `fetch`.

    Attributes:
        name: how suites name it.
        source: `"embedded"`, `"torchvision"`, `"folder"` or `"npz"`.
        splits: those of `train`, `val`, `test` that it has. A shift is always read from `test`.
        classes: names of the classes in label order; empty where only the images matter.
    """

    name: ClassVar[str]
    source: ClassVar[str] = "embedded"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    classes: Sequence[str] = ()

    def split(self, name: str) -> Any:
        """A split as a torch data set of (PIL image, class index), best an `Images`.

        Raises:
            MissingData: it is not on this machine; the message says how to get it.
        """
        raise NotImplementedError

    def missing(self) -> str | None:
        """None when every split can be read; else one line saying what is missing and how to get it."""
        return None

    def fetch(self) -> None:
        """Download into `data_root()`. Raises UserError where that cannot be done by a program."""
        raise UserError(f"{self.name}: nothing to fetch ({self.source})")
