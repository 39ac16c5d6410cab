"""AdaSCALE on activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from howsure import Features, Head, Reps

from ._adascale import _AdaScale


@dataclass(frozen=True)
class AdaScaleA(_AdaScale):
    """AdaSCALE-A. Regmi, 2025, arXiv:2503.08023.

    score = -logsumexp(W (h exp(r)) + b) with r = Σ relu(h) / Σ_{above percentile p} relu(h); shape [N], higher means
    more uncertain. The percentile is the sample's own: p = p_min + (1 - F(Q')) (p_max - p_min), F the distribution of
    Q' = λ Σ_{top k1 % of h} |h - h'| + Σ_{top k2 % of h} relu(h') over in-distribution images that the network was not
    trained on, h' the features after moving the share `o` of input values with the smallest gradient of the top logit
    by 0.5 (in normalised input). Two forward passes and one backward pass to the input.

    k1 and k2 are the paper's; the authors' code had them the other way round at first.
    """

    def score(self, reps: Reps, reference: Tensor) -> Tensor:
        h, head = reps[Features()].double(), reps[Head()]
        scaled = h * self.factor(reps, reference).clamp_max(500).exp()
        return -torch.logsumexp(F.linear(scaled, head.weight.double(), head.bias.double()), 1)
