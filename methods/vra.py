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

    score = -logsumexp(W a(h) + b), a(h_j) = 0 below the low percentile of feature j over training images, the high
    percentile above it, h_j + gamma between; shape [N], higher means more uncertain.

    gamma = 0 is the paper's VRA, above 0 its VRA+. Percentiles are each feature's own, as in the authors' code for
    CIFAR, whose values for CIFAR-10 are the defaults; on ImageNet it has one pair of thresholds for all, in units of
    the activations. OpenOOD takes percentiles over all features, and from 1 % to 15 % as the low one: of the outputs
    of a ReLU more are zero as a rule, and then nothing is left of VRA but ReAct. OpenOOD and pytorch-ood lift low
    activations to the low percentile instead of zeroing them.
    """

    percentile_low: float = 60.0
    percentile_high: float = 90.0
    gamma: float = 0.0

    needs = (Features(), Head())
    supervision = "id-train"
    grid = {"percentile_low": (50.0, 60.0, 65.0, 70.0), "percentile_high": (80.0, 85.0, 90.0, 95.0, 99.0)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        if self.percentile_low > self.percentile_high:
            raise UserError(f"vra: percentile_low {self.percentile_low} exceeds percentile_high {self.percentile_high}")
        h = train[Features()]
        return {"low": percentile_of(h, self.percentile_low, 0), "high": percentile_of(h, self.percentile_high, 0)}

    def score(self, reps: Reps, low: Tensor, high: Tensor) -> Tensor:
        h = reps[Features()].double()
        middle = torch.where(h > high, high, h + self.gamma)
        return energy(torch.where(h < low, 0.0, middle), reps[Head()])
