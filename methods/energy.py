from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import Tensor

from howsure import Logits, Method, Reps


@dataclass(frozen=True)
class Energy(Method):
    """Energy score. Liu et al., 2020, arXiv:2010.03759.

    score = -T logsumexp(z / T); shape [N], higher means more uncertain.
    """

    temperature: PositiveFloat = 1.0

    needs = (Logits(),)

    def score(self, reps: Reps) -> Tensor:
        return -self.temperature * torch.logsumexp(reps[Logits()].double() / self.temperature, dim=1)
