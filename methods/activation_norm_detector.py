"""A control for the paper's detector: the same detector on two activation norms per layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import ActivationNorms, Reps

from ._detectors import _Detector


@dataclass(frozen=True)
class ActivationNormDetector(_Detector):
    """Detector on activation norms. The control for Lee & AlRegib, 2020, with as few numbers per layer.

    For every normalisation layer's output, take the norm over channels of the means over positions and that of the
    standard deviations over positions. Their logs, standardised, go through two fully connected layers trained on
    held-out in-distribution images and outliers. score = log-odds of "outlier"; shape [N], higher means more uncertain.
    No backward pass.
    """

    needs = (ActivationNorms(),)

    def vectors(self, reps: Reps) -> Tensor:
        return reps[ActivationNorms()]
