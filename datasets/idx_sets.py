"""MNIST and similar data sets, 28×28 grey, read from IDX files in torchvision's folders, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import torchvision

from howsure import ArrayImages, Dataset, MissingData, UserError
from howsure.data import data_root, download

STEMS = {"train": "train", "test": "t10k"}


class _Idx(Dataset):
    """IDX files `<stem>-images-idx3-ubyte` and `<stem>-labels-idx1-ubyte`, perhaps with `.gz`, one pair per split."""

    source = "torchvision"
    splits = ("train", "test")
    folder: ClassVar[str]
    elsewhere: ClassVar[tuple[str, ...]] = ()
    stems: ClassVar[dict[str, str]] = STEMS
    first_label: ClassVar[int] = 0

    def split(self, name: str) -> ArrayImages:
        if name not in self.splits:
            raise UserError(f"{self.name}: no split '{name}'; it has {', '.join(self.splits)}")
        files = self._find(name)
        if files is None:
            raise MissingData(self._why())
        x, y = (read_idx(file) for file in files)
        if x.ndim != 3 or y.shape != (len(x),):
            raise UserError(f"{files[0]}: {list(x.shape)} images with {list(y.shape)} labels; fetch {self.name} again")
        return ArrayImages(self.turn(x), y.astype(np.int64) - self.first_label, where=str(files[0]))

    def turn(self, x: np.ndarray) -> np.ndarray:
        """The images in the right orientation."""
        return x

    def missing(self) -> str | None:
        return None if all(self._find(name) for name in self.splits) else self._why()

    def fetch(self) -> None:
        download(self.name, lambda: [self._download(name == "train") for name in self.splits])

    def _download(self, train: bool) -> object:
        return getattr(torchvision.datasets, self.folder)(data_root(), train=train, download=True)

    def _why(self) -> str:
        return f"{self.name}: no IDX files in {data_root() / self.folder / 'raw'}; run `howsure data fetch {self.name}`"

    def _find(self, split: str) -> tuple[Path, Path] | None:
        """The files of a split's images and of its labels, or None if one is missing."""
        stem = self.stems[split]
        for folder in (data_root() / self.folder / "raw", *map(Path, self.elsewhere)):
            for end in ("", ".gz"):
                files = folder / f"{stem}-images-idx3-ubyte{end}", folder / f"{stem}-labels-idx1-ubyte{end}"
                if all(file.is_file() for file in files):
                    return files
        return None


class MNIST(_Idx):
    """Handwritten digits. LeCun et al., 1998."""

    name = "mnist"
    folder = "MNIST"
    classes = tuple("0123456789")


class FashionMNIST(_Idx):
    """Articles of clothing. Xiao et al., 2017, arXiv:1708.07747. Also found in Debian's `dataset-fashion-mnist`."""

    name = "fashion-mnist"
    folder = "FashionMNIST"
    elsewhere = ("/usr/share/datasets/fashion-mnist",)
    classes = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class KMNIST(_Idx):
    """Cursive Japanese characters. Clanuwat et al., 2018, arXiv:1812.01718."""

    name = "kmnist"
    folder = "KMNIST"
    classes = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


class EMNISTLetters(_Idx):
    """Handwritten letters, both cases in one class. Cohen et al., 2017, arXiv:1702.05373."""

    name = "emnist-letters"
    folder = "EMNIST"
    stems = {"train": "emnist-letters-train", "test": "emnist-letters-test"}
    first_label = 1
    classes = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

    def turn(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1)

    def _download(self, train: bool) -> object:
        return torchvision.datasets.EMNIST(data_root(), split="letters", train=train, download=True)


def read_idx(file: Path) -> np.ndarray:
    """An IDX file of bytes as a uint8 array. Raises UserError if it cannot be read, is truncated, or is another file.

    Format: two zero bytes, 8 (for unsigned bytes), the number of dimensions, each dimension as a big-endian 32-bit
    integer, then the values.
    """
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); fetch it again") from error
    sides = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    start = 4 + 4 * sides
    if not sides or len(content) < start:
        raise UserError(f"{file}: not an IDX file of bytes; fetch it again")
    shape = np.frombuffer(content, ">u4", sides, offset=4).astype(int)
    if len(content) - start != shape.prod():
        raise UserError(f"{file}: holds {len(content) - start} values, its header says {shape.prod()}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
