from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from howsure import Features, Head, Method, Reps, UserError
from howsure.values import Percentile

from ._head import energy
from ._prune import percentile_of


@dataclass(frozen=True)
class VRA(Method):
    """Variational rectified activation. Xu et al., 2023, arXiv:2302.11716.

    score = -logsumexp(W a(h) + b), where a(h_j) is 0 below the low percentile of feature j over training images, the
    high percentile above that, and h_j + gamma in between; shape [N], higher means more uncertain.

    gamma = 0 is the paper's VRA, gamma > 0 its VRA+. Percentiles are per feature, as in the authors' code for CIFAR,
    whose values for CIFAR-10 are the defaults; for ImageNet it has one pair of thresholds for all features, in units of
    the activations. OpenOOD takes percentiles over all features, with low ones from 1 % to 15 %: since usually more of
    a ReLU's outputs are zero than that, VRA then reduces to ReAct. OpenOOD and pytorch-ood raise low activations to the
    low percentile instead of setting them to zero.
    """

    percentile_low: Percentile = 60.0
    percentile_high: Percentile = 90.0
    gamma: NonNegativeFloat = 0.0

    needs = (Features(), Head())
    supervision = "id-train"
    grid = {"percentile_low": (50.0, 60.0, 65.0, 70.0), "percentile_high": (80.0, 85.0, 90.0, 95.0, 99.0)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        if self.percentile_low > self.percentile_high:
            raise UserError(
                f"vra: percentile_low = {self.percentile_low} must not exceed percentile_high = {self.percentile_high}"
            )
        h = train[Features()]
        return {"low": percentile_of(h, self.percentile_low, 0), "high": percentile_of(h, self.percentile_high, 0)}

    def score(self, reps: Reps, low: Tensor, high: Tensor) -> Tensor:
        h = reps[Features()].double()
        middle = torch.where(h > high, high, h + self.gamma)
        return energy(torch.where(h < low, 0.0, middle), reps[Head()])
