"""AdaSCALE on logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from howsure import Features, Head, Reps

from ._adascale import _AdaScale


@dataclass(frozen=True)
class AdaScaleL(_AdaScale):
    """AdaSCALE-L. Regmi, 2025, arXiv:2503.08023.

    score = -logsumexp(r² z), the factor r of AdaSCALE-A squared and applied to the logits; shape [N], higher means more
    uncertain. Two forward passes and one backward pass to the input.
    """

    def score(self, reps: Reps, reference: Tensor) -> Tensor:
        head = reps[Head()]
        logits = F.linear(reps[Features()].double(), head.weight.double(), head.bias.double())
        return -torch.logsumexp(self.factor(reps, reference).square() * logits, 1)
