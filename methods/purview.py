"""The detector on gradient norms under several confounding labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor

from howsure import Confound, GradNorms, Reps
from howsure.detector import log_norms

from ._detectors import _Detector


@dataclass(frozen=True)
class Purview(_Detector):
    """Probing the purview of neural networks. Lee et al., 2023, arXiv:2304.02834.

    The vectors of squared gradient norms under several confounding labels, with the first n classes set to one for each
    n in `hot` (None: all of them), are concatenated and go through two fully connected layers trained on held-out
    in-distribution images and outliers (adversarial ones too, if given). score = log-odds of "outlier"; shape [N],
    higher means more uncertain. One backward pass per label.

    The norms enter as standardised logs.
    """

    hot: Annotated[tuple[int | None, ...], MinLen(1)] = (0, 2, None)
    log: bool = True

    @property
    def needs(self):
        return tuple(GradNorms(Confound(n)) for n in self.hot)

    def vectors(self, reps: Reps) -> Tensor:
        norms = torch.cat([reps[need] for need in self.needs], 1)
        return log_norms(norms) if self.log else norms
