from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import log_odds_parts


@dataclass(frozen=True)
class GEN(Method):
    """Generalised entropy. Liu et al., 2023, openreview.net/forum?id=Sie7oeTABS.

    score = sum over the m largest p of p^gamma (1 - p)^gamma; shape [N], higher means more uncertain.

    Computed with logarithms, so that no probability is clamped: pytorch-ood keeps p within [1e-7, 1 - 1e-7] (and
    averages), which at gamma = 0.1 adds up to 0.2 per class and reorders confident images.
    """

    gamma: PositiveFloat = 0.1
    m: PositiveInt = 100

    needs = (Logits(),)
    grid = {"gamma": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "m": (10, 50, 100, 200, 500, 1000)}

    def score(self, reps: Reps) -> Tensor:
        log_p, log_rest = log_odds_parts(reps[Logits()])
        top = log_p.topk(min(self.m, log_p.shape[1]), dim=1).indices
        return (self.gamma * (log_p + log_rest)).exp().gather(1, top).sum(1)
