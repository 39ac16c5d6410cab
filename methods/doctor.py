from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import log_odds_parts


@dataclass(frozen=True)
class Doctor(Method):
    """DOCTOR, the alpha detector. Granese et al., 2021, arXiv:2106.02395.

    score = 1 - sum_c p_c^2 = sum_c p_c (1 - p_c); shape [N], higher means more uncertain.

    The paper compares (1 - g) / g with a threshold, g = sum_c p_c^2: an increasing function of this score. Its beta
    detector ranks images like `msp`. Its variant with a temperature and an input step is left out.
    """

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        log_p, log_rest = log_odds_parts(reps[Logits()])
        return (log_p + log_rest).exp().sum(1)
