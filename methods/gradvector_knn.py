"""Nearest neighbours of gradient norms."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import PositiveInt
from torch import Tensor

from howsure import GradNorms, Loss, Method, Reps, Uniform
from howsure.detector import log_norms, standardiser

from ._neighbours import kth_distance


@dataclass(frozen=True)
class GradVectorKNN(Method):
    """Nearest neighbours in log-norm space. One-class form of Lee & AlRegib, 2020, arXiv:2008.08030.

    v = (log ‖g_1‖², …, log ‖g_P‖²), g_p the gradient of `loss` with respect to parameter set p, each standardised on
    in-distribution training images. score = distance of v to its k-th nearest neighbour among theirs; shape [N],
    higher means more uncertain. No outliers are seen. One backward pass.
    """

    loss: Loss = field(default_factory=Uniform)
    k: PositiveInt = 50

    supervision = "id-train"
    grid = {"k": (10, 50, 100, 200)}

    @property
    def needs(self):
        return (GradNorms(self.loss),)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        v = log_norms(train[GradNorms(self.loss)])
        mean, gain = standardiser(v)
        return {"mean": mean, "gain": gain, "bank": ((v - mean) * gain).float()}

    def score(self, reps: Reps, mean: Tensor, gain: Tensor, bank: Tensor) -> Tensor:
        return kth_distance(((log_norms(reps[GradNorms(self.loss)]) - mean) * gain).float(), bank, self.k)
