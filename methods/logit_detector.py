"""A control for the paper's detector: the same detector on the logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Logits, Reps

from ._detectors import _Detector


@dataclass(frozen=True)
class LogitDetector(_Detector):
    """Detector on logits. The control for Lee & AlRegib, 2020, that sees only the network's output.

    The logits, standardised, go through two fully connected layers trained on held-out in-distribution images and
    outliers. score = log-odds of "outlier"; shape [N], higher means more uncertain.
    """

    needs = (Logits(),)

    def vectors(self, reps: Reps) -> Tensor:
        return reps[Logits()]
