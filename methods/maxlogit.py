from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Logits, Method, Reps


@dataclass(frozen=True)
class MaxLogit(Method):
    """Maximum logit. Hendrycks et al., 2022, arXiv:1911.11132.

    score = -max_c z_c; shape [N], higher means more uncertain.
    """

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        return -reps[Logits()].double().amax(1)
