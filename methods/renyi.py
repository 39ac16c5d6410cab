from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import entropy, gaps


@dataclass(frozen=True)
class Renyi(Method):
    """Rényi entropy of the softmax. Rényi, 1961, classic.

    score = log(sum_c p_c^alpha) / (1 - alpha) in nats; Shannon's entropy at alpha = 1, -log max p at infinity;
    shape [N], higher means more uncertain. At alpha = 2 it ranks images like `doctor`.
    """

    alpha: PositiveFloat = 0.5

    needs = (Logits(),)
    grid = {"alpha": (0.1, 0.25, 0.5, 2.0, 4.0)}

    def score(self, reps: Reps) -> Tensor:
        if self.alpha == 1:
            return entropy(reps[Logits()].double().softmax(1))
        gap = gaps(reps[Logits()])
        log_top = -gap.exp().sum(1).log1p()
        if self.alpha == float("inf"):
            return -log_top
        return (self.alpha * log_top + (self.alpha * gap).exp().sum(1).log1p()) / (1 - self.alpha)
