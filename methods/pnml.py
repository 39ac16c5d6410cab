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

RANK = 1e-10


@dataclass(frozen=True)
class PNML(Method):
    """Regret of the predictive normalised maximum likelihood of the last layer. Bibas et al., 2021, arXiv:2110.09246.

    score = log sum_c p_c / (p_c + (1 - p_c) p_c^g) / log C, p = softmax(W v + b), v = h / |h|, V training features
    of unit rows; g = max(|v_o|^2, q / (1 + q)), q = v' (V'V)^+ v and v_o the part of v outside the span of V; shape
    [N], higher means more uncertain.

    As in the authors' code, but for the constant 1 that it prepends to v; pytorch-ood leaves out |v_o|^2. Directions
    count as outside where the eigenvalue of V'V is below 1e-10 of the largest.
    """

    needs = (Features(), Head())
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        v = normalize(train[Features()].double(), dim=1)
        values, vectors = torch.linalg.eigh(v.T @ v)
        inside = values > RANK * values[-1]
        return {"whiten": vectors * torch.where(inside, values, torch.inf).rsqrt(), "outside": vectors * ~inside}

    def score(self, reps: Reps, whiten: Tensor, outside: Tensor) -> Tensor:
        head = HeadWeights(*(t.double() for t in reps[Head()]))

        def regret(h: Tensor) -> Tensor:
            v = normalize(h.double(), dim=1)
            q, outer = ((v @ directions).square().sum(1, keepdim=True) for directions in (whiten, outside))
            z = v @ head.weight.T + head.bias
            log_p, log_rest = log_odds_parts(z)
            odds = (log_rest - log_p * torch.minimum(1 - outer, 1 / (1 + q))).exp()
            top = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.argmax(1, keepdim=True), True)
            # the sum minus one, term by term: small terms would vanish next to the top class's, which is close to one
            above_one = torch.where(top, -odds / (1 + odds), 1 / (1 + odds)).sum(1)
            return above_one.log1p() / max(math.log(len(head.bias)), 1e-12)

        return by_rows(regret, reps[Features()])
