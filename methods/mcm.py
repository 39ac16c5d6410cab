from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import log_odds


@dataclass(frozen=True)
class MCM(Method):
    """Maximum concept matching. Ming et al., 2022, arXiv:2211.13445.

    score = log((1 - p) / p), p = max_c softmax(z / tau)_c; shape [N], higher means more uncertain.

    In the paper, z are cosines between an image and class names; here they are the classifier's logits, as in OpenOOD.
    The paper's confidence p gives the same ranking, but ties if it rounds to one, as it does for most images at
    tau = 0.01.
    """

    tau: PositiveFloat = 1.0

    needs = (Logits(),)
    grid = {"tau": (0.01, 1.0, 10.0)}

    def score(self, reps: Reps) -> Tensor:
        return log_odds(reps[Logits()], self.tau)
