"""Outliers made from in-distribution training images, altered beyond recognition; no outside images are used."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from PIL import Image

from .images import Images, eight_bits

GREY = ("1", "L", "LA", "La")
KINDS = ("patch_shuffle", "mixture", "inversion", "low_contrast", "noise", "blur", "pixel_shuffle")


class Synthetic(Images):
    """Every image of a set, altered in one of the ways in `KINDS`, in turn; image `i` is the same at every call.

    Images with even indices are mixed only with each other, and so are odd ones: a detector can then be fitted on one
    half as inliers and on the altered other half as outliers.
    """

    def __init__(self, images: Images, seed: int = 0) -> None:
        self.images, self.seed = images, seed

    @property
    def y(self) -> np.ndarray:  # type: ignore[override]
        return self.images.y

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        rng = np.random.default_rng((self.seed, index))
        image, label = self._image(index)
        pixels = np.asarray(image).astype(np.float64)
        kind = KINDS[index % len(KINDS)]
        if kind == "mixture":
            alike = (len(self.images) + 1 - index % 2) // 2
            drawn = int(rng.integers(alike))
            partner = 2 * ((drawn + (drawn == index // 2)) % alike) + index % 2  # never itself, unless it is alone
            other = self._image(partner)[0].convert(image.mode).resize(image.size)
            altered = (pixels + np.asarray(other)) / 2
        else:
            altered = alter(pixels, kind, rng)
        return Image.fromarray(np.clip(altered, 0, 255).astype(np.uint8)), label

    def _image(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        image = eight_bits(image)
        return (image if image.mode in ("L", "RGB") else image.convert("L" if image.mode in GREY else "RGB")), label

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return f"synthetic {self.seed} {self.images.fingerprint}"


def alter(x: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Pixels `[H, W]` or `[H, W, C]`, 0 to 255, altered in one of the ways in `KINDS` other than `mixture`.

    The result may leave the range.
    """
    if kind == "patch_shuffle":
        return _shuffle_patches(x, 4, rng)
    if kind == "inversion":
        return 255 - x
    if kind == "low_contrast":
        return x.mean() + rng.uniform(0.1, 0.4) * (x - x.mean())
    if kind == "noise":
        return x + rng.normal(0, rng.uniform(15, 80), x.shape)
    if kind == "blur":
        from scipy.ndimage import gaussian_filter

        sigma = rng.uniform(0.02, 0.08) * max(32, min(x.shape[:2]))  # less would hardly change a small image
        return gaussian_filter(x, (sigma, sigma) + (0,) * (x.ndim - 2))
    return rng.permutation(x.reshape(-1, *x.shape[2:])).reshape(x.shape)


def _shuffle_patches(x: np.ndarray, grid: int, rng: np.random.Generator) -> np.ndarray:
    """The image cut into `grid` × `grid` patches in random order; a remainder at the edge stays where it is."""
    h, w = x.shape[0] // grid, x.shape[1] // grid
    places = [(slice(i * h, i * h + h), slice(j * w, j * w + w)) for i in range(grid) for j in range(grid)]
    out = x.copy()
    for here, there in zip(places, rng.permutation(len(places)), strict=True):
        out[here] = x[places[there]]
    return out
