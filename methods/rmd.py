from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Labels, Method, Reps
from howsure.gaussian import sq_distances
from howsure.values import Fraction

from ._gaussians import present_classes, whiten, whiten_within
from ._rows import by_rows


@dataclass(frozen=True)
class RMD(Method):
    """Relative Mahalanobis distance. Ren et al., 2021, arXiv:2106.09022.

    score = min_k d_k(h) - d_0(h), d_k the squared Mahalanobis distance to class k (tied covariance), d_0 that to one
    Gaussian of all training features (covariance S_0); shape [N], higher means more uncertain.

    `shrinkage` is the weight of each covariance's own diagonal; inverses are pseudo-inverses. Both distances use the
    directions in which S_0 varies by more than rounding, so that those that do not depend on the class cancel.
    """

    shrinkage: Fraction = 0.0

    needs = (Features(), Labels())
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        h = train[Features()].double()
        means, centred = present_classes(h, train[Labels()])
        centre = h.mean(0, keepdim=True)
        whiten_all = whiten(h - centre, self.shrinkage)
        within = whiten_within(centred, whiten_all, self.shrinkage)
        return {"means": means, "whiten": within, "centre": centre, "whiten_all": whiten_all}

    def score(self, reps: Reps, means: Tensor, whiten: Tensor, centre: Tensor, whiten_all: Tensor) -> Tensor:
        def relative(h: Tensor) -> Tensor:
            return sq_distances(h, means, whiten).amin(1) - sq_distances(h, centre, whiten_all)[:, 0]

        return by_rows(relative, reps[Features()])
