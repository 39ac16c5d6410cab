"""A network before all splits of a suite, and which of their images belong to which part."""

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
Some = Sequence[tuple[str, Tensor | None]]


@dataclass
class Bench:
    """A network with all splits of a suite laid out before it.

    Attributes:
        splits: by name: `train`, `test`, perhaps `val` and `synthetic`, and one a shift.
        shifts: what is told apart from `test`.
        seed: of the protocol's parts and of whatever a method draws at random.
    """

    network: Network
    extractor: Extractor
    splits: Mapping[str, Split]
    shifts: Sequence[Shift]
    seed: int

    def reps(
        self, split: str, needs: Sequence[Any], method: str, index: Tensor | None = None, fit_on: Tensor | None = None
    ) -> Reps:
        """What a method needs of a split, or of its images at `index`, and nothing else.

        Representations that are fitted see the training images at `fit_on`; left out, all.
        """
        return self.look([(split, index)], needs, method, fit_on)[0]

    def look(self, some: Some, needs: Sequence[Any], method: str, fit_on: Tensor | None = None) -> list[Reps]:
        """The same of several splits, looking at the images of all together."""
        extractor = self.extractor if fit_on is None else self.extractor.fitted_on(fit_on)
        found = extractor.together([(self.splits[split], index) for split, index in some], needs)
        return [reps.only(tuple(needs), method) for reps in found]

    @cached_property
    def ids(self) -> dict[str, Reps]:
        return {name: self.extractor(split, (ImageIds(), Labels())) for name, split in self.splits.items()}

    def met_before(self) -> Iterator[tuple[str, int, str]]:
        """Sets to score with images that are in a set to fit on, or out-of-distribution ones in `test`, pixel by pixel
        at the network's size: the set, how many, and where else they are."""
        strange = [s.name for s in self.shifts if not (self.splits[s.name].corruption or self.splits[s.name].clean)]
        for known in [name for name in ("train", "val", "test") if name in self.splits]:
            for split in [name for name in ("test", *strange) if name != known]:
                ids = [self.ids[name][ImageIds()] for name in (split, known)]
                if n := int(torch.isin(*ids).sum()):
                    yield split, n, known

    def part(self, split: str, part: int) -> Tensor:
        """Indices of the images of a split that belong to a part."""
        return members(self.ids[split], part, self.seed)

    @cached_property
    def divisible(self) -> list[Shift]:
        """The shifts with an image in every part; the others are too small for protocols that split."""
        return [s for s in self.shifts if all(len(self.part(s.name, part)) for part in (FIT, VAL, TEST))]

    def indices(self, split: str, part: int, tuning: bool = False) -> Tensor:
        """Those to fit or tune on: the part's, or for tuning a few of them.

        Altered training images are in the parts of their originals. A grid looks at no more than 1,000 images of the
        fit part and 500 of the validation part of each kind of shift, at random, an equal share of each severity.
        """
        index = self.part("train" if split == "synthetic" else split, part)
        kinds = {shift.name: shift.kind for shift in self.shifts}
        severities = sum(kind == kinds.get(split) for kind in kinds.values())
        return spread(index, _MOST_TO_TUNE_ON[part] // max(1, severities), self.seed) if tuning else index
