"""What every family of networks gives: an untrained or pretrained classifier and how its inputs look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its images: `size` (height, width) in pixels, `mean` and `std` a channel, of values in 0..1.

    `crop` is the share of the resized image's shorter side that is kept; None resizes straight to `size`, whatever the
    image's proportions. `interpolation` is Pillow's name in lower case.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = None
    interpolation: str = "bilinear"

    @property
    def channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class Recipe:
    """How a network without a checkpoint is trained on the spot: AdamW, one-cycle schedule, cross-entropy.

    `shift` pixels of random translation; `smoothing` of the labels.
    """

    epochs: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 0.01
    shift: int = 0
    smoothing: float = 0.0


class Backbone:
    """A network architecture by name. Subclasses give `build` and `input`; see `backbones/` for examples."""

    name: ClassVar[str]
    input: ClassVar[InputSpec]
    recipe: ClassVar[Recipe | None] = None

    def build(self, num_classes: int) -> nn.Module:
        """A freshly initialised classifier, `[N, channels, *size] -> [N, num_classes]`."""
        raise NotImplementedError
