from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Logits, Method, Reps

from ._rows import by_rows
from ._softmax import log_odds_parts


@dataclass(frozen=True)
class KLM(Method):
    """KL matching. Hendrycks et al., 2022, arXiv:1911.11132.

    d_k = mean of softmax(z) over the ID validation images predicted as k;
    score = min_k KL(softmax(z) || d_k); shape [N], higher means more uncertain.

    Classes that are never predicted have no d_k and are left out; OpenOOD puts a one-hot vector there instead.
    """

    needs = (Logits(),)
    supervision = "id-train"
    fit_split = "val"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        predicted, (log_p, _) = train[Logits()].double().argmax(1), log_odds_parts(train[Logits()])
        own = predicted.unique()[:, None]
        groups = [log_p[predicted == k] for k in own]
        log_means = torch.stack([g.logsumexp(0) - math.log(len(g)) for g in groups])
        others = log_means.exp().scatter(1, own, 0).sum(1, keepdim=True)
        return {"log_means": log_means.scatter(1, own, torch.log1p(-others))}

    def score(self, reps: Reps, log_means: Tensor) -> Tensor:
        def divergence(z: Tensor) -> Tensor:
            log_p, _ = log_odds_parts(z)
            p = log_p.exp()
            return ((p * log_p).sum(1, keepdim=True) - p @ log_means.T).amin(1).clamp_min(0)

        return by_rows(divergence, reps[Logits()])
