"""The contract of a backbone: how to build a classifier, what its inputs look like, and how it may be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import nn

from .images import eight_bits

RESAMPLING = {m.name.lower(): m for m in Image.Resampling}


@dataclass(frozen=True)
class InputSpec:
    """How images are prepared for a network.

    Attributes:
        size: (height, width) in pixels.
        mean, std: one value per channel, 1 or 3, of pixel values in [0, 1].
        crop: the share of the resized image's shorter side that is kept; None resizes straight to `size`, whatever the
            image's aspect ratio.
        interpolation: Pillow's name of the filter, in lower case.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = None
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        return len(self.mean)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image at this size, uint8 `[H, W, channels]`."""
        image = eight_bits(image).convert("L" if self.channels == 1 else "RGB")
        height, width = self.size
        if self.crop is not None or (image.height, image.width) != (height, width):
            image = _resize(image, height, width, self.crop, RESAMPLING[self.interpolation])
        return np.asarray(image).reshape(height, width, self.channels)


@dataclass(frozen=True)
class Recipe:
    """How a network without a checkpoint is trained: AdamW, one-cycle schedule with peak `lr`, cross-entropy.

    Training images are randomly translated by up to `shift` pixels; `smoothing`, 0 to 1, is that of the labels.
    """

    epochs: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 0.01
    shift: int = 0
    smoothing: float = 0.0


class Backbone:
    """A network architecture by name. Subclasses define `name`, `input` and `build`; see `backbones/` for examples."""

    name: ClassVar[str]
    input: ClassVar[InputSpec]
    recipe: ClassVar[Recipe | None] = None

    def build(self, num_classes: int) -> nn.Module:
        """A freshly initialised classifier, `[N, channels, *size] -> [N, num_classes]`."""
        raise NotImplementedError


def _resize(image: Image.Image, height: int, width: int, crop: float | None, how: Image.Resampling) -> Image.Image:
    """Resize and centre-crop, identical to timm and torchvision to the pixel."""
    if crop is None:
        return image.resize((width, height), how)
    least = [int(side / crop + 1e-6) for side in (width, height)]
    scale = max(side / given for side, given in zip(least, image.size, strict=True))
    sides = [max(side, int(given * scale + 1e-6)) for side, given in zip(least, image.size, strict=True)]
    left, top = round((sides[0] - width) / 2), round((sides[1] - height) / 2)
    return image.resize((sides[0], sides[1]), how).crop((left, top, left + width, top + height))
