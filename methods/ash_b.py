from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Head, Method, Reps
from howsure.values import Percentile

from ._head import energy
from ._prune import largest


@dataclass(frozen=True)
class ASHB(Method):
    """Activation shaping by binarising. Djurisic et al., 2023, arXiv:2209.09858.

    score = -logsumexp(W a(h) + b), where a sets the k largest activations of the image to sum(h) / k and the others to
    0; shape [N], higher means more uncertain.

    `percentile` per cent of each image's activations are pruned, here at the penultimate layer. Zeros among the largest
    stay zero and do not count in k, so that the score does not depend on how equal zeros are sorted; OpenOOD and
    pytorch-ood fill them too, and differ if fewer than k activations are positive. Negative activations count as 0.
    """

    percentile: Percentile = 90.0

    needs = (Features(), Head())
    grid = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}

    def score(self, reps: Reps) -> Tensor:
        h = reps[Features()].double()
        values, index = largest(h, self.percentile)
        alive = (values > 0).double()
        values = alive * h.relu().sum(1, keepdim=True) / alive.sum(1, keepdim=True).clamp_min(1)
        return energy(torch.zeros_like(h).scatter(1, index, values), reps[Head()])
