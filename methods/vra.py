from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Head, Method, Reps, UserError

from ._head import energy
from ._prune import percentile_of


@dataclass(frozen=True)
class VRA(Method):
    """Variational rectified activation. Xu et al., 2023, arXiv:2302.11716.

    score = -logsumexp(W a(h) + b), a(h) = 0 below the low percentile of all training activations, the high percentile
    above it, h + gamma between; shape [N], higher means more uncertain.

    gamma = 0 is the paper's VRA, above 0 its VRA+. OpenOOD and pytorch-ood lift low activations to the low percentile
    instead of zeroing them, and pytorch-ood takes percentiles of each feature.
    """

    percentile_low: float = 10.0
    percentile_high: float = 90.0
    gamma: float = 0.0

    needs = (Features(), Head())
    supervision = "id-train"
    grid = {"percentile_low": (1.0, 5.0, 10.0, 15.0), "percentile_high": (85.0, 90.0, 95.0, 99.0)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        if self.percentile_low > self.percentile_high:
            raise UserError(f"vra: percentile_low {self.percentile_low} exceeds percentile_high {self.percentile_high}")
        h = train[Features()]
        return {"low": percentile_of(h, self.percentile_low), "high": percentile_of(h, self.percentile_high)}

    def score(self, reps: Reps, low: Tensor, high: Tensor) -> Tensor:
        h = reps[Features()].double()
        middle = torch.where(h > high, high, h + self.gamma)
        return energy(torch.where(h < low, 0.0, middle), reps[Head()])
