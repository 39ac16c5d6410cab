"""A network with all splits of a suite, and the parts that protocols divide them into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .extract import Extractor
from .network import Network
from .protocol import FIT, TEST, VAL, Shift, members, spread
from .representation import Reps
from .representations import ImageIds, Labels
from .split import Split

_MOST_TO_TUNE_ON = {FIT: 1000, VAL: 500}
Selection = Sequence[tuple[str, Tensor | None]]
"""Names of splits, each with the indices of images, or None for all."""


@dataclass
class Bench:
    """A network with all splits of a suite.

    Attributes:
        splits: by name: `train`, `test`, perhaps `val` and `synthetic`, and one per shift.
        shifts: the shifted sets to detect; each is also a split.
        seed: for the division into parts and for whatever a method draws at random.
    """

    network: Network
    extractor: Extractor
    splits: Mapping[str, Split]
    shifts: Sequence[Shift]
    seed: int

    def reps(
        self, split: str, needs: Sequence[Any], method: str, index: Tensor | None = None, fit_on: Tensor | None = None
    ) -> Reps:
        """The representations that a method needs, and no others, of a split or of its images at `index`.

        Fitted representations see the training images at `fit_on`, by default all.
        """
        return self.read([(split, index)], needs, method, fit_on)[0]

    def read(self, images: Selection, needs: Sequence[Any], method: str, fit_on: Tensor | None = None) -> list[Reps]:
        """The same for several splits, whose images go through the network together."""
        extractor = self.extractor if fit_on is None else self.extractor.fitted_on(fit_on)
        found = extractor.together([(self.splits[split], index) for split, index in images], needs)
        return [reps.only(tuple(needs), method) for reps in found]

    def leave_out(self, shift: str) -> None:
        """Go on without a shift."""
        self.splits = {name: split for name, split in self.splits.items() if name != shift}
        self.shifts = [s for s in self.shifts if s.name != shift]

    @cached_property
    def ids(self) -> dict[str, Reps]:
        """Image hashes and labels of each split but `synthetic`, whose images go with their originals."""
        splits = {name: split for name, split in self.splits.items() if name != "synthetic"}
        return {name: self.extractor(split, (ImageIds(), Labels())) for name, split in splits.items()}

    def overlaps(self) -> Iterator[tuple[str, int, str]]:
        """Splits that share images but should not: `test` with a split to fit on, or a shift with any of the three.

        Yields the split, the number of its images, and the other split. Images are the same if their pixels are, at the
        network's input size. Corrupted copies of test images are left out, since they overlap by design.
        """
        ood = [s.name for s in self.shifts if not (self.splits[s.name].corruption or self.splits[s.name].clean)]
        for known in [name for name in ("train", "val", "test") if name in self.splits]:
            for split in [name for name in ("test", *ood) if name != known]:
                ids = [self.ids[name][ImageIds()] for name in (split, known)]
                if n := int(torch.isin(*ids).sum()):
                    yield split, n, known

    def part(self, split: str, part: int) -> Tensor:
        """Indices of a split's images that belong to a part."""
        return members(self.ids[split], part, self.seed)

    @cached_property
    def divisible(self) -> list[Shift]:
        """The shifts that protocols can divide, as they do `test`: those with an image in every part."""
        return [s for s in self.shifts if self.has_parts("test") and self.has_parts(s.name)]

    def has_parts(self, split: str) -> bool:
        """Whether a split has an image in every part; if not, it is too small for protocols that divide it."""
        return all(len(self.part(split, part)) for part in (FIT, VAL, TEST))

    def indices(self, split: str, part: int, tuning: bool = False) -> Tensor:
        """Indices of the images of a part to fit or tune on.

        While tuning, at most 1,000 random images of the fit part and 500 of the validation part are used for each kind
        of shift, the same share for each severity.
        """
        index = self.part(split, part)
        kinds = {shift.name: shift.kind for shift in self.shifts}
        severities = sum(kind == kinds.get(split) for kind in kinds.values())
        return spread(index, _MOST_TO_TUNE_ON[part] // max(1, severities), self.seed) if tuning else index
