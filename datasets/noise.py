"""Pure noise, 2,000 images of 32×32 RGB each, from a fixed seed; as in Liang et al., 2018, arXiv:1706.02690 (ODIN)."""

from __future__ import annotations

import numpy as np

from howsure import ArrayImages, Dataset

SHAPE = (2000, 32, 32, 3)


class GaussianNoise(Dataset):
    """Independent Gaussian values, mean 0.5 and standard deviation 1 in units of full brightness, clipped to [0, 1]."""

    name = "gaussian-noise"

    def split(self, name: str) -> ArrayImages:
        values = np.random.default_rng(0).normal(0.5, 1, SHAPE)
        return ArrayImages((values.clip(0, 1) * 255).round().astype(np.uint8), where=self.name)


class UniformNoise(Dataset):
    """Independent values, uniform over the 256 levels."""

    name = "uniform-noise"

    def split(self, name: str) -> ArrayImages:
        return ArrayImages(np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8), where=self.name)
