from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Head, Method, Reps
from howsure.values import Percentile

from ._head import energy
from ._prune import largest


@dataclass(frozen=True)
class ASHP(Method):
    """Activation shaping by pruning. Djurisic et al., 2023, arXiv:2209.09858.

    score = -logsumexp(W a(h) + b), where a keeps the largest activations of the image and sets the others to 0;
    shape [N], higher means more uncertain.

    `percentile` per cent of each image's activations are pruned, here at the penultimate layer.
    """

    percentile: Percentile = 90.0

    needs = (Features(), Head())
    grid = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}

    def score(self, reps: Reps) -> Tensor:
        h = reps[Features()].double()
        values, index = largest(h, self.percentile)
        return energy(torch.zeros_like(h).scatter(1, index, values), reps[Head()])
