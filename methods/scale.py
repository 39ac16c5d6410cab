from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Head, Method, Reps
from howsure.values import Percentile

from ._head import energy
from ._prune import sum_ratio


@dataclass(frozen=True)
class Scale(Method):
    """Activation scaling. Xu et al., 2024, arXiv:2310.00227.

    score = -logsumexp(W h exp(sum(h) / sum of the largest) + b); shape [N], higher means more uncertain.

    The largest are the activations above the image's percentile. Sums count negative activations as 0, so that the
    factor is defined for networks without a final ReLU.
    """

    percentile: Percentile = 85.0

    needs = (Features(), Head())
    grid = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}

    def score(self, reps: Reps) -> Tensor:
        h = reps[Features()].double()
        return energy(h * sum_ratio(h, self.percentile).exp(), reps[Head()])
