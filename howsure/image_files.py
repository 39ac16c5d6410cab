"""Images in files and folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import MissingData, UserError, why
from .images import Images, eight_bits

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


class FileImages(Images):
    """Image files with labels; an image is read when it is asked for.

    The fingerprint covers the folder, the names below it (in any encoding), sizes, modification times and labels; no
    image is read for it.
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
        digest = hashlib.sha256(str(self.folder.resolve()).encode(errors="surrogateescape"))
        for file, label in zip(self.files, self.y, strict=True):
            try:
                stat = file.stat()
            except OSError as error:
                raise UserError(f"{file}: not a readable image ({why(error)}); repair or remove it") from error
            times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
            line = f"{os.path.relpath(file, self.folder)} {label} {stat.st_size} {times}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()


class FolderImages(FileImages):
    """A folder with one sub-folder per class (searched to any depth), or a flat folder of images, all of class 0.

    `classes` fixes the order of classes (names of sub-folders), which is alphabetical by default. Hidden files and
    folders are ignored, as are sub-folders without images and links to a folder that contains them.

    Raises:
        MissingData: there is no such folder. UserError: it contains no image, loose images beside class folders, or a
            class that is not in `classes`.
    """

    def __init__(self, folder: str | Path, classes: Sequence[str] | None = None) -> None:
        folder, by_class = _searched(folder)
        loose = by_class.get("")
        if loose and (len(by_class) > 1 or classes):
            raise UserError(f"{loose[0]}: a loose image beside class folders; move it into one of them or remove it")
        self.classes = list(classes or sorted(name for name in by_class if name))
        unknown = sorted(set(by_class) - {"", *self.classes})
        if unknown:
            raise UserError(
                f"{folder}: class '{unknown[0]}' is not one of the {len(self.classes)} trained on; remove or rename it"
            )
        order = self.classes or [""]
        pairs = [(file, label) for label, name in enumerate(order) for file in by_class.get(name, ())]
        super().__init__([file for file, _ in pairs], [label for _, label in pairs], folder)


class LooseImages(FileImages):
    """All images in and below a folder, all of class 0.

    Raises:
        MissingData: there is no such folder. UserError: it contains no image.
    """

    def __init__(self, folder: str | Path) -> None:
        folder, by_class = _searched(folder)
        files = sorted(file for some in by_class.values() for file in some)
        super().__init__(files, [0] * len(files), folder)


def _searched(folder: str | Path) -> tuple[Path, dict[str, list[Path]]]:
    """The folder, and its images by sub-folder."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise MissingData(f"{folder}: no such folder; put the images there or name another")
    by_class = _images_by_class(folder)
    if not by_class:
        raise UserError(f"{folder}: contains no image; put files there that end in {' '.join(EXTENSIONS)}")
    return folder, by_class


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    """Image files by the name of the sub-folder that they are in (at any depth); those in `folder` itself under ''."""
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
    raise UserError(f"{error.filename}: cannot be read ({why(error)}); change its permissions or remove it") from error


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that contains it."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.absolute().parents}


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
