from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from howsure import Features, Logits, Method, Reps
from howsure.values import Share

from ._neighbours import share_of_rows, unit
from ._rows import by_rows


@dataclass(frozen=True)
class NNGuide(Method):
    """Nearest-neighbour guidance. Park et al., 2023, arXiv:2309.14888.

    score = -E(z) * mean of the k largest E(z_i) v . v_i, v = h / |h|, E = logsumexp, over a bank of training images i;
    shape [N], higher means more uncertain.

    `bank` is the share of training images kept, evenly spaced (OpenOOD keeps the first ones). The defaults are
    OpenOOD's; pytorch-ood's are k = 10 and all images. `k` is capped at the bank's size.
    """

    k: PositiveInt = 100
    bank: Share = 0.01

    needs = (Features(), Logits())
    supervision = "id-train"
    grid = {"k": (10, 100), "bank": (0.01, 0.1, 1.0)}
    test_params = {"k": 3, "bank": 0.5}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        rows = share_of_rows(len(train[Logits()]), self.bank)
        confidence = torch.logsumexp(train[Logits()][rows].double(), dim=1, keepdim=True)
        return {"guide": (unit(train[Features()][rows]) * confidence).float()}

    def score(self, reps: Reps, guide: Tensor) -> Tensor:
        k = min(self.k, len(guide))

        def guidance(v: Tensor) -> Tensor:
            return (v @ guide.T).topk(k, dim=1).values.double().mean(1)

        return -by_rows(guidance, unit(reps[Features()]), size=512) * torch.logsumexp(reps[Logits()].double(), dim=1)
