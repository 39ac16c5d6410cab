"""Image data: what a data set gives, and the two stores that any data set can be read from (arrays and folders)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset as TorchDataset

from .errors import MissingData, UserError, told, why

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


def data_root() -> Path:
    """The folder that data sets live under: `$HOWSURE_DATA`, else `~/.cache/howsure/data`."""
    return Path(os.environ.get("HOWSURE_DATA") or cache_root() / "data").expanduser()


def cache_root() -> Path:
    """The folder for trained networks and stored representations: `$HOWSURE_CACHE`, else `~/.cache/howsure`."""
    return Path(os.environ.get("HOWSURE_CACHE") or "~/.cache/howsure").expanduser()


def download(name: str, fetch: Callable[[], object]) -> None:
    """Run `fetch`, which downloads the data set `name` into `data_root()`; a failure is a UserError."""
    try:
        data_root().mkdir(parents=True, exist_ok=True)
        fetch()
    except (OSError, RuntimeError, EOFError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: download failed ({why}); try again, or put the files where `howsure data status {name}` says"
        ) from error


class Images(TorchDataset[tuple[Image.Image, int]]):
    """A torch data set of `(PIL image, class index)` pairs that knows what it is made of.

    `fingerprint` changes whenever any image or label does; `y` holds all labels, int64 `[N]`, read without an image.
    """

    fingerprint: str
    y: np.ndarray

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        raise NotImplementedError


class Wrapped(Images):
    """Any torch data set of (PIL image, label) pairs; its labels and fingerprint come from reading all of it once."""

    def __init__(self, images: Any, where: str) -> None:
        self.images, self.where = images, where

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        place = f"{self.where}: image {index}"
        try:
            image, label = self.images[index]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{place}: {told(error)}; give pairs of (PIL image, class index)") from error
        if not isinstance(image, Image.Image):
            raise UserError(f"{place} is a {type(image).__name__}; give PIL images")
        try:
            return eight_bits(image, place), int(label)
        except (TypeError, ValueError) as error:
            raise UserError(f"{place} has the label {label!r}; give class indices from 0") from error

    @cached_property
    def _read(self) -> tuple[np.ndarray, str]:
        labels, digest = np.empty(len(self), np.int64), hashlib.sha256()
        for index in range(len(self)):
            image, labels[index] = self[index]
            digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        digest.update(labels.tobytes())
        return labels, digest.hexdigest()

    @property
    def y(self) -> np.ndarray:  # type: ignore[override]
        return self._read[0]

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self._read[1]


def eight_bits(image: Image.Image, where: str = "an image") -> Image.Image:
    """An image with eight bits a channel: of sixteen the upper ones. UserError for numbers of no known range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"{where}: of mode {image.mode}, numbers of no known range; save it with 8 or 16 bits a channel"
        )
    return image


def as_images(images: Any, where: str) -> Images:
    """A split of whatever data set as `Images`. UserError where it is no torch data set."""
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise UserError(f"{where}: `split` gave a {type(images).__name__}; give a torch data set with a length")
    return images if isinstance(images, Images) else Wrapped(images, where)


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


class FileImages(Images):
    """Image files and their labels; each is read when it is asked for.

    The fingerprint is made of the folder, names below it, sizes, times of change and labels; no image is read for it.
    """

    def __init__(self, files: Sequence[Path], y: np.ndarray | Sequence[int], folder: Path) -> None:
        self.files, self.folder = list(files), folder
        self.y = np.asarray(y, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file = self.files[index]
        try:
            with Image.open(file) as image:
                image.load()
                return eight_bits(image, str(file)), int(self.y[index])
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{file}: not a readable image ({why(error)}); repair or remove it") from error

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        digest = hashlib.sha256(str(self.folder.resolve()).encode())
        for file, label in zip(self.files, self.y, strict=True):
            try:
                stat = file.stat()
            except OSError as error:
                raise UserError(f"{file}: not a readable image ({why(error)}); repair or remove it") from error
            times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
            digest.update(f"{file.relative_to(self.folder)} {label} {stat.st_size} {times}\n".encode())
        return digest.hexdigest()


class FolderImages(FileImages):
    """A folder with one sub-folder a class (searched to any depth), or a flat folder of images, all of class 0.

    `classes` fixes the class order (names of sub-folders); left out, it is alphabetical. Hidden files and folders are
    passed over, and so are sub-folders without an image and links to a folder that they lie in.

    Raises:
        MissingData: there is no such folder. UserError: it holds no image, loose images beside class folders, or a
            class that `classes` lacks.
    """

    def __init__(self, folder: str | Path, classes: Sequence[str] | None = None) -> None:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise MissingData(f"{folder}: no such folder; put the images there or name another")
        by_class = _images_by_class(folder)
        if not by_class:
            raise UserError(f"{folder}: no image in it; expected files ending in {' '.join(EXTENSIONS)}")
        loose = by_class.get("")
        if loose and (len(by_class) > 1 or classes):
            raise UserError(f"{loose[0]}: a loose image where class folders are; move it into one of them or remove it")
        self.classes = list(classes or sorted(name for name in by_class if name))
        strangers = sorted(set(by_class) - {"", *self.classes})
        if strangers:
            raise UserError(f"{folder}: class '{strangers[0]}' is not one of the {len(self.classes)} trained on")
        order = self.classes or [""]
        pairs = [(file, label) for label, name in enumerate(order) for file in by_class.get(name, ())]
        super().__init__([file for file, _ in pairs], [label for _, label in pairs], folder)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Image files by the name of the sub-folder that they lie in (at any depth); those right in `folder` under ''."""
    found: dict[str, list[Path]] = {}
    for path, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        below = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in below if not _leads_back(Path(path) / name)]
        parts = Path(path).relative_to(folder).parts
        images = [Path(path) / name for name in sorted(files) if _is_image(name)]
        if images:
            found.setdefault(parts[0] if parts else "", []).extend(images)
    return found


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({why(error)}); see to its permissions or remove it") from error


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.absolute().parents}


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


class Subset(Images):
    """Some images of another set, by index."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    @cached_property
    def y(self) -> np.ndarray:  # type: ignore[override]
        return self.images.y[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[int(self.indices[index])]

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return hashlib.sha256(self.images.fingerprint.encode() + self.indices.tobytes()).hexdigest()


class Joined(Images):
    """Several sets one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - int(self._ends[part]) + len(self.parts[part])]

    @cached_property
    def y(self) -> np.ndarray:  # type: ignore[override]
        return np.concatenate([part.y for part in self.parts])

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()


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
        raise UserError(f"data set '{self.name}': its class {type(self).__name__} has no `split`; write one")

    def missing(self) -> str | None:
        """None when every split can be read; else one line saying what is missing and how to get it."""
        return None

    def fetch(self) -> None:
        """Download into `data_root()` what is missing. Raises UserError where that cannot be done by a program."""
        reason = self.missing()
        if reason:
            raise UserError(reason)
