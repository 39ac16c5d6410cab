"""AdaSCALE on activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Head, Reps

from ._adascale import _AdaScale
from ._head import energy
from ._prune import LARGEST_RATIO


@dataclass(frozen=True)
class AdaScaleA(_AdaScale):
    """AdaSCALE-A. Regmi, 2025, arXiv:2503.08023.

    score = -logsumexp(W (h exp(r)) + b) with r = Σ relu(h) / Σ_{above percentile p} relu(h); shape [N], higher means
    more uncertain. Each image has its own percentile p = p_min + (1 - F(Q')) (p_max - p_min), with F the distribution
    of Q' = λ Σ_{top k1 % of h} |h - h'| + Σ_{top k2 % of h} relu(h') over in-distribution images that the network was
    not trained on, and h' the features after moving the share `o` of input values with the smallest gradients of the
    top logit by 0.5 (in normalised inputs). Two forward passes and one backward pass to the input.

    k1 and k2 are the paper's; the authors' code in OpenOOD has their names exchanged.
    """

    def score(self, reps: Reps, reference: Tensor) -> Tensor:
        scale = self.factor(reps, reference).clamp_max(LARGEST_RATIO).exp()
        return energy(reps[Features()].double() * scale, reps[Head()])
