"""Test-time augmentation, and the representation it scores: logits of flipped and shifted views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from howsure import Batch, Method, Representation, Reps
from howsure.values import Fraction

from ._passes import mutual_information, predictive_entropy

CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class ViewLogits(Representation[Tensor]):
    """Logits of the image, its mirror image, and crops moved towards the corners, `[N, V, C]`; the views are fixed."""

    cost = "passes"
    flip: bool = True
    crops: int = 4
    shift: float = 0.125

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        x = batch.images
        views = [x.flip(3)] if self.flip else []
        views += [self._moved(x, vertical, horizontal) for vertical, horizontal in CORNERS[: self.crops]]
        with torch.no_grad():
            return torch.stack([batch.logits, *(batch.network.model(view) for view in views)], 1)

    def _moved(self, x: Tensor, vertical: int, horizontal: int) -> Tensor:
        height, width = x.shape[2:]
        dy, dx = max(1, round(self.shift * height)), max(1, round(self.shift * width))
        top, left = dy + vertical * dy, dx + horizontal * dx
        return F.pad(x, (dx, dx, dy, dy), mode="replicate")[:, :, top : top + height, left : left + width]


@dataclass(frozen=True)
class TTA(Method):
    """Test-time augmentation. Ayhan & Berens, 2018 (MIDL), as a score: how far views of one image disagree.

    score = H(mean_v p_v) - mean_v H(p_v) ("mutual_information"), or H(mean_v p_v) ("entropy"), over the image, its
    mirror image (`flip`) and `crops` crops moved by the share `shift` towards a corner, edges repeated; shape [N],
    higher means more uncertain. The views are fixed, whereas papers draw them at random.
    """

    flip: bool = True
    crops: Annotated[int, Interval(ge=0, le=len(CORNERS))] = 4
    shift: Fraction = 0.125
    measure: Literal["entropy", "mutual_information"] = "mutual_information"

    @property
    def needs(self):
        return (ViewLogits(self.flip, self.crops, self.shift),)

    def score(self, reps: Reps) -> Tensor:
        measure = predictive_entropy if self.measure == "entropy" else mutual_information
        return measure(reps[self.needs[0]])
