"""Arrays with one row per image: which rows there are, which are missing, and how to compute those in few passes."""

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
    """Arrays for some images of a split: row `i` of each belongs to image `index[i]`.

    `index` is int64 `[n]`, ascending, without duplicates; None for arrays that belong to the network, not to images.
    """

    arrays: dict[str, Tensor] = field(default_factory=dict)
    index: Tensor | None = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @staticmethod
    def from_file(arrays: dict[str, Tensor]) -> Rows:
        """The inverse of `to_file`."""
        return Rows({key: value for key, value in arrays.items() if key != INDEX}, arrays.get(INDEX))

    def to_file(self) -> dict[str, Tensor]:
        """The arrays by name, with the index among them."""
        return self.arrays if self.index is None else {**self.arrays, INDEX: self.index}

    def missing(self, images: Tensor) -> Tensor:
        """Which of the images, int64 `[m]`, have no row here: bool `[m]`."""
        if self.index is None or torch.equal(self.index, images):
            return torch.zeros(len(images), dtype=torch.bool)
        if not len(self.index):
            return torch.ones(len(images), dtype=torch.bool)
        place = torch.searchsorted(self.index, images).clamp_max(len(self.index) - 1)
        return self.index[place] != images

    def take(self, images: Tensor | None) -> dict[str, Tensor]:
        """The rows of the given images, which must be here, in the given order; all rows if `images` is None."""
        if self.index is None or images is None:
            return self.arrays
        place = torch.searchsorted(self.index, images)
        return {key: value[place] for key, value in self.arrays.items()}

    def join(self, more: Rows) -> Rows:
        """These rows together with those of other images."""
        if self.index is None or more.index is None or not len(self.index):
            return more
        index, order = torch.cat([self.index, more.index]).sort()
        return Rows({key: torch.cat([value, more.arrays[key]])[order] for key, value in self.arrays.items()}, index)


def passes(missing: Tensor, reps: Sequence[Representation[Any]]) -> Iterator[tuple[Tensor, list[Representation[Any]]]]:
    """Which images to pass through the network for which representations: for each pass, a mask `[N]` and a list.

    `missing` is bool `[N, R]`: whether representation `r` of image `n` is missing; for a representation that belongs to
    the network, at most one image of a split is marked. Everything missing is computed once, and nothing else.

    Representations from the shared pass come first, so that its batches do not depend on what else is asked for; then
    those that the fewest images miss, so that no image is processed twice if these images miss all the others too.
    """
    missing = missing.clone()
    of_network = torch.tensor([not rep.per_image for rep in reps])

    def rank(column: int) -> tuple[bool, bool, int]:
        return not reps[column].per_image, reps[column].cost == "passes", int(missing[:, column].sum())

    for column in sorted(range(len(reps)), key=rank):
        images = missing[:, column].clone()
        if images.any():
            columns = torch.where(of_network, missing[images].any(0), missing[images].all(0))
            yield images, [rep for rep, wanted in zip(reps, columns.tolist(), strict=True) if wanted]
            missing &= ~(images[:, None] & columns)
