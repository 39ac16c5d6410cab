from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Logits, Method, Reps
from howsure.values import Percentile

from ._prune import sum_ratio


@dataclass(frozen=True)
class LTS(Method):
    """Logit scaling. Djurisic et al., 2024, arXiv:2409.01175.

    score = -logsumexp(s z), s = (sum(relu(h)) / sum of its largest)^2; shape [N], higher means more uncertain.

    The largest are the activations above the image's percentile; 95 is the paper's p = 5 %, the share that is summed.
    """

    percentile: Percentile = 95.0

    needs = (Features(), Logits())
    grid = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}

    def score(self, reps: Reps) -> Tensor:
        factor = sum_ratio(reps[Features()], self.percentile).square()
        return -torch.logsumexp(factor * reps[Logits()].double(), dim=1)
