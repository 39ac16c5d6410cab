from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from howsure import Features, Head, Logits, Method, Reps

from ._null_space import origin_and_null_space, residual_norm


@dataclass(frozen=True)
class ViM(Method):
    """Virtual-logit matching. Wang et al., 2022, arXiv:2203.10807.

    score = alpha |P (h - o)| - logsumexp(z), P and o as in `residual`, alpha = mean of max z over mean of |P (h - o)|
    on training images; shape [N], higher means more uncertain.

    The paper's score is the softmax probability of the virtual class; this is its log-odds. By default, oodeel centres
    features on their mean instead of o.
    """

    dim: NonNegativeInt | None = None

    needs = (Features(), Logits(), Head())
    supervision = "id-train"
    grid = {"dim": (16, 32, 64, 128, 256, 512, 1000)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        origin, null_space = origin_and_null_space(train[Features()], train[Head()], self.dim)
        residual = residual_norm(train[Features()], origin, null_space).mean()
        top = train[Logits()].double().amax(1).mean()
        alpha = torch.where(residual > 1e-12 * top.abs(), top / residual, 0.0)
        return {"origin": origin, "null_space": null_space, "alpha": alpha}

    def score(self, reps: Reps, origin: Tensor, null_space: Tensor, alpha: Tensor) -> Tensor:
        virtual = alpha * residual_norm(reps[Features()], origin, null_space)
        return virtual - torch.logsumexp(reps[Logits()].double(), dim=1)
