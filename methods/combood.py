from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from howsure import Features, Method, Reps

from ._neighbours import kth_distance, unit
from ._rows import by_rows


@dataclass(frozen=True)
class ComboOD(Method):
    """Nearest neighbours and Mahalanobis combined. Rajasekaran et al., 2024, arXiv:2602.07042.

    score = sqrt(D) log d_k^2 + m^2, with v = h / |h|, d_k the distance of v to its k-th nearest training image, m the
    Mahalanobis distance of the standardised v to the training mean under covariance + `ridge` times the identity; shape
    [N], higher means more uncertain.

    This is the variant on penultimate features alone. The authors' code also transforms each feature to be closer to
    normal (Yeo-Johnson) for m, and has variants with the extremes of every layer; its script runs the one that computes
    m from those. Distances below 1e-6 count as 1e-6.
    """

    k: PositiveInt = 50
    ridge: NonNegativeFloat = 1.0

    needs = (Features(),)
    supervision = "id-train"
    grid = {"k": (10, 50, 100, 200)}
    test_params = {"k": 3}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        v = unit(train[Features()].double())
        mean, std = v.mean(0), v.std(0, correction=0)
        scale = torch.where(std > 0, 1 / std, 1.0)
        x = (v - mean) * scale
        covariance = x.T @ x / len(x) + self.ridge * torch.eye(x.shape[1], dtype=x.dtype)
        return {
            "bank": v,
            "mean": mean,
            "scale": scale,
            "precision": torch.linalg.pinv(covariance, hermitian=True),
        }

    def score(self, reps: Reps, bank: Tensor, mean: Tensor, scale: Tensor, precision: Tensor) -> Tensor:
        def sq_mahalanobis(v: Tensor) -> Tensor:
            x = (v - mean) * scale
            return (x @ precision * x).sum(1)

        v = unit(reps[Features()].double())
        near = 2 * kth_distance(v, bank, self.k).clamp_min(1e-6).log()
        return len(mean) ** 0.5 * near + by_rows(sq_mahalanobis, v)
