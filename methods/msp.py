from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import doubt


@dataclass(frozen=True)
class MSP(Method):
    """Maximum softmax probability. Hendrycks & Gimpel, 2017, arXiv:1610.02136.

    score = 1 - max_c softmax(z)_c; shape [N], higher means more uncertain.

    The paper's confidence is max p. One minus it gives the reverse ranking; it is summed from the other classes, so
    that images whose probability rounds to one do not tie.
    """

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        return doubt(reps[Logits()])
