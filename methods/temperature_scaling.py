from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from howsure import Labels, Logits, Method, Reps

from ._rows import by_rows
from ._softmax import doubt

RANGE = 100.0


@dataclass(frozen=True)
class TemperatureScaling(Method):
    """Temperature scaling. Guo et al., 2017, arXiv:1706.04599.

    T minimises the mean of logsumexp(z / T) - z_y / T over ID validation images;
    score = 1 - max_c softmax(z / T)_c; shape [N], higher means more uncertain.

    The loss is convex in 1/T, so T is found as the only root of its derivative, without gradient descent. T stays
    between a hundredth and 100 times the mean gap between the largest logit and the others, since without a wrong
    prediction the optimum would be 0.
    """

    needs = (Logits(), Labels())
    supervision = "id-train"
    fit_split = "val"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        z = train[Logits()].double()
        z = z - z.amax(1, keepdim=True)
        unit = float(-z.mean()) or 1.0
        z = z / unit
        true = z.gather(1, train[Labels()].long()[:, None]).mean()

        def slope(log_t: float) -> float:
            t = math.exp(log_t)
            return float(by_rows(lambda x: (torch.softmax(x / t, dim=1) * x).sum(1), z).mean() - true)

        low, high = -math.log(RANGE), math.log(RANGE)
        if slope(low) < 0:
            log_t = low
        elif slope(high) > 0:
            log_t = high
        else:
            log_t = brentq(slope, low, high, xtol=1e-7)
        return {"temperature": unit * torch.tensor(math.exp(log_t), dtype=torch.float64)}

    def score(self, reps: Reps, temperature: Tensor) -> Tensor:
        return doubt(reps[Logits()], temperature)
