from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Logits, Method, Reps

from ._softmax import gaps


@dataclass(frozen=True)
class Margin(Method):
    """Margin between the two most probable classes. Scheffer et al., 2001, classic.

    score = 1 - (p_(1) - p_(2)); shape [N], higher means more uncertain. With one class only, p_(2) is 0.
    """

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        others = gaps(reps[Logits()]).exp()
        total = others.sum(1)
        return (total + torch.amax(others, 1)) / (1 + total)
