from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from howsure import Features, Head, Method, Reps
from howsure.representations import HeadWeights

from ._rows import by_rows


@dataclass(frozen=True)
class PNML(Method):
    """Regret of the predictive normalised maximum likelihood of the last layer. Bibas et al., 2021, arXiv:2110.09246.

    score = log sum_c p_c / (p_c + (1 - p_c) p_c^g) / log C, p = softmax(W v + b), v = h / |h|;
    g = q / (1 + q), q = v' pinv(V'V) v for training features V of unit rows, and g = 1 where v leaves their span;
    shape [N], higher means more uncertain.

    The authors' code and pytorch-ood have no case for v outside the span: they drop that part of v, the paper's x_perp.
    """

    needs = (Features(), Head())
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        v = normalize(train[Features()].double(), dim=1)
        values, vectors = torch.linalg.eigh(v.T @ v)
        inside = values > values.amax() * len(values) * torch.finfo(values.dtype).eps
        scale = torch.where(inside, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
        return {"whiten": vectors * scale, "outside": vectors[:, ~inside]}

    def score(self, reps: Reps, whiten: Tensor, outside: Tensor) -> Tensor:
        head = HeadWeights(*(t.double() for t in reps[Head()]))

        def regret(h: Tensor) -> Tensor:
            v = normalize(h.double(), dim=1)
            q = (v @ whiten).square().sum(1, keepdim=True)
            leaves = (v @ outside).square().sum(1, keepdim=True) > 1e-10
            g = torch.where(leaves, 1.0, q / (1 + q))
            log_p = (v @ head.weight.T + head.bias).log_softmax(1)
            terms = 1 / (1 - torch.expm1(log_p) * ((g - 1) * log_p).exp())
            return terms.sum(1).log() / max(math.log(len(head.bias)), 1e-12)

        return by_rows(regret, reps[Features()])
