from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import entropy


@dataclass(frozen=True)
class Entropy(Method):
    """Entropy of the softmax. Shannon, 1948, classic.

    score = -sum_c p_c log p_c in nats; shape [N], higher means more uncertain.

    Exact, whereas pytorch-ood first raises probabilities to at least 1e-7, which reorders confident images.
    """

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        return entropy(reps[Logits()].double().softmax(1))
