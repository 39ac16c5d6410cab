"""ExGrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from howsure import Features, Logits, Method, Reps
from howsure.representations import HasBias

from ._softmax import log_odds_parts


@dataclass(frozen=True)
class ExGrad(Method):
    """ExGrad. Igoe et al., 2022, arXiv:2205.10439.

    score = Σ_c p_c ‖∇ CE_c‖ over the weight and bias of the last layer, CE_c the cross-entropy to class c; shape [N],
    higher means more uncertain.

    The authors' code flips the score wherever its AUC is below 0.5, so the published numbers do not determine its sign.

    The gradient is the outer product of p - e_c and (h, 1), so no backward pass is needed: with the L1 norm, as in the
    authors' code, the score is 2 Σ p_c (1 - p_c) (‖h‖₁ + 1), with the L2 norm Σ p_c ‖p - e_c‖₂ √(‖h‖₂² + 1). If the
    layer has no bias, the 1 is left out.
    """

    norm: Literal["l1", "l2"] = "l1"

    needs = (Features(), Logits(), HasBias())

    def score(self, reps: Reps) -> Tensor:
        h, bias = reps[Features()].double(), reps[HasBias()].double()
        p, rest = (part.exp() for part in log_odds_parts(reps[Logits()]))
        if self.norm == "l1":
            return 2 * (p * rest).sum(1) * (h.abs().sum(1) + bias)
        squares, top = p.square(), p.argmax(1, keepdim=True)
        below = squares.scatter(1, top, 0.0).sum(1, keepdim=True)
        others = (squares.sum(1, keepdim=True) - squares).scatter(1, top, below)
        return (p * (others + rest.square()).sqrt()).sum(1) * (h.square().sum(1) + bias).sqrt()
