"""The offline data sets: handwritten digits, and images near to and far from them, all 8×8 grey.

They come with scikit-learn, or from a sheet of letters kept here, so that the suite `digits` runs without downloads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

from howsure import ArrayImages, Dataset

SIDE = 8
KNOWN = tuple("01234567")
UPPER, LOWER = "ABCDEFGHJKLMNPQRTUVWXY", "abdefghjmnqrty"
"""Letters that differ from digits (no I, O, S, Z, i, l) and, scaled to one height, from those of the other case."""
SHEET = Path(__file__).with_name("letters.png")


class Digits(Dataset):
    """Handwritten digits 0 to 7. Alpaydin & Kaynak, 1998 (UCI optdigits), as shipped with scikit-learn.

    1,443 images in three fixed, stratified parts: `train` 60 %, `val` 10 %, `test` 30 %.
    """

    name = "digits"
    splits = ("train", "val", "test")
    classes = KNOWN

    def split(self, name: str) -> ArrayImages:
        self.require(name)
        x, y = _digits()
        part = _parts()[name]
        return ArrayImages(x[part], y[part], where=self.name)


class DigitsUnseen(Dataset):
    """Handwritten digits 8 and 9, by the same writers as `digits`: the near shift. 354 images."""

    name = "digits-unseen"
    classes = ("8", "9")

    def split(self, name: str) -> ArrayImages:
        x, y = _digits()
        return ArrayImages(x[y >= len(KNOWN)], y[y >= len(KNOWN)] - len(KNOWN), where=self.name)


class Letters(Dataset):
    """Letters in 22 fonts (DejaVu, STIX, Computer Modern), processed like the digits: 792 images.

    Each letter is a bitmap of 32×32, white on black, scaled to its full height; a pixel counts the white ones in a
    block of 4×4. They are cut from a sheet with one row per font, drawn by `benchmarks/letters/draw.py`.
    """

    name = "letters"
    classes = (*UPPER, *LOWER)

    def split(self, name: str) -> ArrayImages:
        x = _cut(np.asarray(Image.open(SHEET)), 1)
        return ArrayImages(x, np.arange(len(x)) % len(self.classes), where=self.name)


class Photos(Dataset):
    """Patches of scikit-learn's two sample photographs (a temple, a flower): grey, 24×24 pixels averaged to 8×8."""

    name = "photos"
    classes = ("china", "flower")

    def split(self, name: str) -> ArrayImages:
        patches = [_cut(np.asarray(Image.fromarray(photo).convert("L")), 3) for photo in load_sample_images().images]
        labels = np.repeat(np.arange(len(patches)), [len(p) for p in patches])
        return ArrayImages(np.concatenate(patches), labels, where=self.name)


class Noise(Dataset):
    """300 images of uniform and 300 of Gaussian noise (mean 127.5, standard deviation 64), from a fixed seed."""

    name = "noise"
    classes = ("uniform", "gaussian")

    def split(self, name: str) -> ArrayImages:
        rng = np.random.default_rng(0)
        uniform = rng.integers(0, 256, (300, SIDE, SIDE))
        gaussian = rng.normal(127.5, 64, (300, SIDE, SIDE)).round().clip(0, 255)
        x = np.concatenate([uniform, gaussian]).astype(np.uint8)
        return ArrayImages(x, np.repeat([0, 1], 300), where=self.name)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits: uint8 `[N, 8, 8]` and labels 0 to 9 `[N]`."""
    data = load_digits()
    return _to_uint8(data.images), data.target.astype(np.int64)


@cache
def _parts() -> dict[str, np.ndarray]:
    """Indices of the three splits of the known classes, fixed and stratified."""
    _, y = _digits()
    known = np.flatnonzero(y < len(KNOWN))
    train, rest = train_test_split(known, train_size=0.6, stratify=y[known], random_state=0)
    val, test = train_test_split(rest, train_size=0.25, stratify=y[rest], random_state=0)
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def _to_uint8(counts: np.ndarray) -> np.ndarray:
    return np.round(counts * 255 / 16).astype(np.uint8)


def _cut(grey: np.ndarray, step: int) -> np.ndarray:
    """The patches in a grid, row by row, uint8 `[N, 8, 8]`; each pixel is the mean of step × step pixels."""
    rows, columns = (side // (SIDE * step) for side in grey.shape)
    grid = grey[: rows * SIDE * step, : columns * SIDE * step].reshape(rows, SIDE, step, columns, SIDE, step)
    return grid.mean(axis=(2, 5)).transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE).round().astype(np.uint8)
