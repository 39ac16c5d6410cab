"""A control for the paper's detector: the same detector on penultimate features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Reps

from ._detectors import _Detector


@dataclass(frozen=True)
class FeatureDetector(_Detector):
    """Detector on penultimate features. The control for Lee & AlRegib, 2020, that sees only the last layer's input.

    The features, standardised, go through two fully connected layers trained on held-out in-distribution images and
    outliers. score = log-odds of "outlier"; shape [N], higher means more uncertain.
    """

    needs = (Features(),)

    def vectors(self, reps: Reps) -> Tensor:
        return reps[Features()]
