from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Head, Method, Reps
from howsure.representations import HeadWeights
from howsure.values import Percentile

from ._head import energy
from ._prune import percentile_of


@dataclass(frozen=True)
class DICE(Method):
    """Directed sparsification. Sun & Li, 2022, arXiv:2111.09805.

    score = -logsumexp((M * W) h + b), where M keeps the weights whose contribution W * mean(h) on training images is
    above the percentile of all contributions; shape [N], higher means more uncertain.
    """

    percentile: Percentile = 90.0

    needs = (Features(), Head())
    supervision = "id-train"
    grid = {"percentile": (10.0, 30.0, 50.0, 70.0, 90.0)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        weight = train[Head()].weight.double()
        contribution = weight * train[Features()].double().mean(0)
        keep = contribution > percentile_of(contribution, self.percentile)
        return {"weight": torch.where(keep, weight, 0.0)}

    def score(self, reps: Reps, weight: Tensor) -> Tensor:
        return energy(reps[Features()], HeadWeights(weight, reps[Head()].bias))
