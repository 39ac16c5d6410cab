from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Method, Reps

from ._neighbours import kth_distance, unit
from ._rows import by_rows


@dataclass(frozen=True)
class ComboOD(Method):
    """Nearest neighbours and Mahalanobis combined. Rajasekaran et al., 2024, arXiv:2602.07042.

    score = sqrt(D) log d_k^2 + m^2: d_k the distance of h / |h| to its k-th nearest training feature, m that of the
    standardised h to their mean under covariance + `ridge` times the identity; shape [N], higher means more uncertain.

    The variant on penultimate features alone. The authors' code also makes each feature more normal (Yeo-Johnson)
    before m, and has variants with the extremes of every layer. Distances below 1e-6 count as 1e-6.
    """

    k: int = 50
    ridge: float = 1.0

    needs = (Features(),)
    supervision = "id-train"
    grid = {"k": (10, 50, 100, 200)}
    test_params = {"k": 3}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        h = train[Features()].double()
        mean, std = h.mean(0), h.std(0, correction=0)
        scale = torch.where(std > 0, 1 / std, 1.0)
        x = (h - mean) * scale
        covariance = x.T @ x / len(x) + self.ridge * torch.eye(x.shape[1], dtype=x.dtype)
        return {
            "bank": unit(h),
            "mean": mean,
            "scale": scale,
            "precision": torch.linalg.pinv(covariance, hermitian=True),
        }

    def score(self, reps: Reps, bank: Tensor, mean: Tensor, scale: Tensor, precision: Tensor) -> Tensor:
        def sq_mahalanobis(h: Tensor) -> Tensor:
            x = (h.double() - mean) * scale
            return (x @ precision * x).sum(1)

        h = reps[Features()]
        near = 2 * kth_distance(unit(h), bank, self.k).clamp_min(1e-6).log()
        return len(mean) ** 0.5 * near + by_rows(sq_mahalanobis, h)
