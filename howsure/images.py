"""Images as torch data sets that can tell whether any image has changed."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from .errors import UserError, described


class Images(TorchDataset[tuple[Image.Image, int]]):
    """A torch data set of `(PIL image, class index)` pairs.

    Attributes:
        fingerprint: a text that changes whenever an image or a label does.
        y: all labels, int64 `[N]`, available without reading images.
    """

    fingerprint: str
    y: np.ndarray

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        raise NotImplementedError


class Wrapped(Images):
    """Any torch data set of (PIL image, label) pairs; it is read once for its labels and fingerprint."""

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
            raise UserError(f"{place}: {described(error)}; give pairs of (PIL image, class index)") from error
        if not isinstance(image, Image.Image):
            raise UserError(f"{place} is a {type(image).__name__}; give PIL images")
        try:
            return eight_bits(image, place), operator.index(label)
        except (TypeError, ValueError) as error:
            raise UserError(f"{place} has the label {label!r}; give class indices from 0") from error

    @cached_property
    def _read(self) -> tuple[np.ndarray, str]:
        labels, digest = np.empty(len(self), np.int64), hashlib.sha256()
        for index in range(len(self)):
            image, labels[index] = self[index]
            digest.update(f"{image.mode} {image.size} {image.getpalette()}".encode() + image.tobytes())
        digest.update(labels.tobytes())
        return labels, digest.hexdigest()

    @property
    def y(self) -> np.ndarray:  # type: ignore[override]
        return self._read[0]

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self._read[1]


def eight_bits(image: Image.Image, where: str = "an image") -> Image.Image:
    """An image with 8 bits per channel; of 16 bits, the upper 8. Raises UserError if the range of values is unknown."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow makes PGM 16 bits
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"{where}: of mode {image.mode}, whose range of values is unknown; save it with 8 or 16 bits per channel"
        )
    return image


def as_images(images: Any, where: str) -> Images:
    """A split of any data set as `Images`. Raises UserError if it is not a torch data set with a length."""
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise UserError(f"{where}: `split` gave a {type(images).__name__}; give a torch data set with a length")
    return images if isinstance(images, Images) else Wrapped(images, where)


class ArrayImages(Images):
    """Images in memory: `x` uint8 `[N, H, W]` or `[N, H, W, C]` with C 1 or 3, `y` integers `[N]` (zeros if None).

    `where` says where they come from, in error messages.
    """

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


class Subset(Images):
    """The images of another set at some indices."""

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


def image_id(pixels: np.ndarray) -> int:
    """A 63-bit hash of an image's pixels."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "big") >> 1
