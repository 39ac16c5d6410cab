from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Head, Method, Reps
from howsure.values import Percentile

from ._head import energy
from ._prune import percentile_of


@dataclass(frozen=True)
class ReAct(Method):
    """Rectified activations. Sun et al., 2021, arXiv:2111.12797.

    score = -logsumexp(W min(h, c) + b), c the percentile of all training activations; shape [N], higher means more
    uncertain.
    """

    percentile: Percentile = 90.0

    needs = (Features(), Head())
    supervision = "id-train"
    grid = {"percentile": (85.0, 90.0, 95.0, 99.0)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        return {"threshold": percentile_of(train[Features()], self.percentile)}

    def score(self, reps: Reps, threshold: Tensor) -> Tensor:
        return energy(reps[Features()].double().minimum(threshold), reps[Head()])
