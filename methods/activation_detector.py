"""A control for the paper's detector: the same detector on plain activations of all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import LayerMoments, Reps

from ._detectors import _Detector


@dataclass(frozen=True)
class ActivationDetector(_Detector):
    """Detector on channel statistics. The control for Lee & AlRegib, 2020; compare Dong et al., 2022, arXiv:2104.11408.

    The mean and the standard deviation over positions of every channel of every normalisation layer, standardised, go
    through two fully connected layers trained on held-out in-distribution images and outliers. score = log-odds of
    "outlier"; shape [N], higher means more uncertain. No backward pass.

    Neural Mean Discrepancy (Dong et al.) uses only means, minus those of the training images.
    """

    needs = (LayerMoments(),)

    def vectors(self, reps: Reps) -> Tensor:
        moments = reps[LayerMoments()]
        return torch.cat([moments[name].flatten(1) for name in sorted(moments)], 1)
