from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import doubt


@dataclass(frozen=True)
class MCM(Method):
    """Maximum concept matching. Ming et al., 2022, arXiv:2211.13445.

    score = 1 - max_c softmax(z / tau)_c; shape [N], higher means more uncertain.

    The paper's z are cosines between an image and class names; here they are the classifier's logits, as in OpenOOD.
    One minus the paper's confidence ranks the same, without ties at one.
    """

    tau: float = 1.0

    needs = (Logits(),)
    grid = {"tau": (0.01, 1.0, 10.0)}

    def score(self, reps: Reps) -> Tensor:
        return doubt(reps[Logits()], self.tau)
