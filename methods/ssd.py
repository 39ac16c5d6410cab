from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from howsure import Features, Method, Reps
from howsure.gaussian import sq_distances
from howsure.values import Fraction

from ._gaussians import ROUNDING, whiten
from ._rows import by_rows


@dataclass(frozen=True)
class SSD(Method):
    """Mahalanobis distance on normalised features. Sehwag et al., 2021, arXiv:2103.12051.

    score = (v - mu)' S^-1 (v - mu), v = h / |h|, mu and S the mean and covariance of training v; shape [N], higher
    means more uncertain.

    There is one cluster, the paper's choice. The paper trains features without labels; these are the classifier's.
    `shrinkage` is the weight of S's own diagonal; S^-1 is the pseudo-inverse.
    """

    shrinkage: Fraction = 0.0

    needs = (Features(),)
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        v = normalize(train[Features()].double(), dim=1)
        centre = v.mean(0, keepdim=True)
        varies = v.std(0, correction=0) > ROUNDING * centre.abs()
        return {"centre": centre, "whiten": whiten((v - centre) * varies, self.shrinkage)}

    def score(self, reps: Reps, centre: Tensor, whiten: Tensor) -> Tensor:
        return by_rows(lambda h: sq_distances(normalize(h.double(), dim=1), centre, whiten)[:, 0], reps[Features()])
