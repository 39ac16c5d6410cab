from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveFloat
from torch import Tensor

from howsure import Features, Logits, Method, Reps
from howsure.values import Fraction

from ._neighbours import unit
from ._rows import by_rows


@dataclass(frozen=True)
class Relation(Method):
    """Neural relation graph. Kim et al., 2023, arXiv:2301.12321.

    score = -sum_i k_i^power over training images i, k_i = max(0, v . v_i) * (p . p_i), v = h / |h|, p = softmax(z);
    shape [N], higher means more uncertain.

    Relations up to `threshold` are ignored, as in the authors' code. By definition every image is compared with every
    training image: 10,000 images against 50,000 with 512 features and 1,000 classes take about 30 seconds on two cores.
    """

    power: PositiveFloat = 1.0
    threshold: Fraction = 0.03

    needs = (Features(), Logits())
    supervision = "id-train"
    grid = {"power": (1, 2, 4, 6, 8)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        return {"features": unit(train[Features()]), "probabilities": train[Logits()].double().softmax(1).float()}

    def score(self, reps: Reps, features: Tensor, probabilities: Tensor) -> Tensor:
        def relation(h: Tensor, z: Tensor) -> Tensor:
            alike = unit(h) @ features.T
            alike = alike.clamp_min_(0).mul_(z.double().softmax(1).float() @ probabilities.T)
            edges = alike.masked_fill_(alike <= self.threshold, 0)
            return -(edges if self.power == 1 else edges.pow_(self.power)).double().sum(1)

        return by_rows(relation, reps[Features()], reps[Logits()], size=256)
