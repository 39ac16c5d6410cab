from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Labels, Method, Reps
from howsure.gaussian import sq_distances
from howsure.values import Fraction

from ._gaussians import present_classes, whiten
from ._rows import by_rows


@dataclass(frozen=True)
class Mahalanobis(Method):
    """Mahalanobis distance on penultimate features. Lee et al., 2018, arXiv:1807.03888.

    score = min_k (h - mu_k)' S^-1 (h - mu_k), S the covariance of training features around their class's mean;
    shape [N], higher means more uncertain.

    Penultimate features only; `mahalanobis_layers` has the input step and the combination over layers. S^-1 is the
    pseudo-inverse; `shrinkage` is the weight of S's own diagonal. pytorch-ood adds 1e-6 to the diagonal of the sum (not
    the mean) of outer products.
    """

    shrinkage: Fraction = 0.0

    needs = (Features(), Labels())
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        means, centred = present_classes(train[Features()], train[Labels()])
        return {"means": means, "whiten": whiten(centred, self.shrinkage)}

    def score(self, reps: Reps, means: Tensor, whiten: Tensor) -> Tensor:
        return by_rows(lambda h: sq_distances(h, means, whiten).amin(1), reps[Features()])
