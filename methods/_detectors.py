"""What all trained detectors share; they differ only in the vectors that they are trained on."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from howsure import Method, Reps
from howsure.detector import Kind, fit_detector, score_detector


@dataclass(frozen=True)
class _Detector(Method):
    kind: Kind = "mlp"
    hidden: PositiveInt = 32
    weight_decay: NonNegativeFloat = 0.01
    seed: NonNegativeInt = 0

    supervision = "outliers"

    def vectors(self, reps: Reps) -> Tensor:
        """The vectors that the detector is trained on and scores, `[N, D]`."""
        raise NotImplementedError

    def fit(self, train: Reps, outliers: Reps) -> dict[str, Tensor]:
        inside, outside = self.vectors(train), self.vectors(outliers)
        return fit_detector(inside, outside, self.kind, self.hidden, self.weight_decay, seed=self.seed)

    def score(self, reps: Reps, **state: Tensor) -> Tensor:
        return score_detector(self.vectors(reps), **state)
