from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from howsure import Features, Head, Method, Reps
from howsure.representations import HeadWeights

from ._rows import by_rows
from ._softmax import log_odds_parts

RIDGE = 1e-7


@dataclass(frozen=True)
class PNML(Method):
    """Regret of the predictive normalised maximum likelihood of the last layer. Bibas et al., 2021, arXiv:2110.09246.

    score = log sum_c p_c / (p_c + (1 - p_c) p_c^g) / log C, p = softmax(W v + b), v = h / |h|;
    g = q / (1 + q), q = v' (V'V)^-1 v for training features V of unit rows; shape [N], higher means more uncertain.

    A ridge of 1e-7 makes V'V invertible, so that g approaches 1 for v outside the span of V and rounding is not
    magnified. pytorch-ood uses the pseudo-inverse, which ignores the part of v outside the span; so does the authors'
    code, which uses the squared length of that part for g if it is larger, and prepends a constant 1 to v.
    """

    needs = (Features(), Head())
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        v = normalize(train[Features()].double(), dim=1)
        values, vectors = torch.linalg.eigh(v.T @ v)
        return {"whiten": vectors * (values.clamp_min(0) + RIDGE).rsqrt()}

    def score(self, reps: Reps, whiten: Tensor) -> Tensor:
        head = HeadWeights(*(t.double() for t in reps[Head()]))

        def regret(h: Tensor) -> Tensor:
            v = normalize(h.double(), dim=1)
            q = (v @ whiten).square().sum(1, keepdim=True)
            z = v @ head.weight.T + head.bias
            log_p, log_rest = log_odds_parts(z)
            odds = (log_rest - log_p / (1 + q)).exp()
            top = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.argmax(1, keepdim=True), True)
            # the sum minus one, term by term: small terms would vanish next to the top class's, which is close to one
            above_one = torch.where(top, -odds / (1 + odds), 1 / (1 + odds)).sum(1)
            return above_one.log1p() / max(math.log(len(head.bias)), 1e-12)

        return by_rows(regret, reps[Features()])
