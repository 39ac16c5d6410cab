"""ExGrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from howsure import Features, Logits, Method, Reps
from howsure.representations import HasBias


@dataclass(frozen=True)
class ExGrad(Method):
    """ExGrad. Igoe et al., 2022, arXiv:2205.10439.

    score = Σ_c p_c ‖∇ CE_c‖ over the weight and bias of the last layer, CE_c the cross-entropy to class c; shape [N],
    higher means more uncertain.

    The authors' code flips the score wherever its AUC is below 0.5, so that the published numbers do not fix its sign.

    The gradient is the outer product of p - e_c and (h, 1), so no backward pass is needed: with the L1 norm of the
    authors' code the score is 2 Σ p_c (1 - p_c) (‖h‖₁ + 1), with the L2 norm Σ p_c ‖p - e_c‖₂ √(‖h‖₂² + 1). Where
    the layer has no bias, the 1 is left out.
    """

    norm: Literal["l1", "l2"] = "l1"

    needs = (Features(), Logits(), HasBias())

    def score(self, reps: Reps) -> Tensor:
        h, p = reps[Features()].double(), reps[Logits()].double().softmax(1)
        rest, bias = p.sum(1, keepdim=True) - p, reps[HasBias()].double()
        if self.norm == "l1":
            return 2 * (p * rest).sum(1) * (h.abs().sum(1) + bias)
        squares = p.square()
        others = squares.sum(1, keepdim=True) - squares
        return (p * (others + rest.square()).clamp_min(0).sqrt()).sum(1) * (h.square().sum(1) + bias).sqrt()
