"""Rows of arrays, one an image: which there are, which are lacking, and how few passes give all that is lacking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .representation import Representation

INDEX = "index of images"


@dataclass(frozen=True)
class Rows:
    """Arrays of some images of a split: row `i` of each belongs to the image `index[i]`.

    `index` is int64 `[n]`, ascending, without duplicates; None for arrays that belong to the network and to no image.
    """

    arrays: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @staticmethod
    def from_file(arrays: dict[str, Tensor]) -> Rows:
        """What `to_file` gave."""
        return Rows({key: value for key, value in arrays.items() if key != INDEX}, arrays.get(INDEX))

    def to_file(self) -> dict[str, Tensor]:
        """The arrays and their index under names of their own."""
        return self.arrays if self.index is None else {**self.arrays, INDEX: self.index}

    def lack(self, images: Tensor) -> Tensor:
        """Which of the images, int64 `[m]`, are not among these: bool `[m]`."""
        if self.index is None or torch.equal(self.index, images):
            return torch.zeros(len(images), dtype=torch.bool)
        if not len(self.index):
            return torch.ones(len(images), dtype=torch.bool)
        place = torch.searchsorted(self.index, images).clamp_max(len(self.index) - 1)
        return self.index[place] != images

    def take(self, images: Tensor | None) -> dict[str, Tensor]:
        """The arrays at images that are among these, in the order asked for; as they are where that is None."""
        if self.index is None or images is None:
            return self.arrays
        place = torch.searchsorted(self.index, images)
        return {key: value[place] for key, value in self.arrays.items()}

    def join(self, more: Rows) -> Rows:
        """These and those of other images."""
        if self.index is None or more.index is None or not len(self.index):
            return more
        index, order = torch.cat([self.index, more.index]).sort()
        return Rows({key: torch.cat([value, more.arrays[key]])[order] for key, value in self.arrays.items()}, index)


def passes(lack: Tensor, reps: Sequence[Representation[Any]]) -> Iterator[tuple[Tensor, list[Representation[Any]]]]:
    """Which images to look at for which representations: a mask `[N]` and a list for each pass.

    `lack` is bool `[N, R]`: image `n` lacks representation `r`; of what belongs to the network, at most one image of a
    split does. All that is lacking is in one pass, once, and nothing else. What the shared pass gives comes first, so
    that its batches do not depend on what else there is. Then comes what the fewest images lack: where those lack the
    rest too, no image is looked at twice.
    """
    lack = lack.clone()
    alone = torch.tensor([not rep.per_image for rep in reps])

    def rank(column: int) -> tuple[bool, bool, int]:
        return not reps[column].per_image, reps[column].cost == "passes", int(lack[:, column].sum())

    for column in sorted(range(len(reps)), key=rank):
        images = lack[:, column].clone()
        if images.any():
            columns = torch.where(alone, lack[images].any(0), lack[images].all(0))
            yield images, [rep for rep, wanted in zip(reps, columns.tolist(), strict=True) if wanted]
            lack &= ~(images[:, None] & columns)
