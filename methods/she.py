from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from howsure import Features, Labels, Logits, Method, Reps
from howsure.gaussian import class_means


@dataclass(frozen=True)
class SHE(Method):
    """Simplified Hopfield energy. Zhang et al., 2023, openreview.net/forum?id=KkazG4lgKL.

    score = -h . S_y, y the predicted class, S_y the mean feature of its correctly classified training images;
    shape [N], higher means more uncertain.

    The inner product is the paper's; oodeel takes the largest product over all classes. A class without a correctly
    classified image gets the mean of all correctly classified ones (or of all images, if there are none).
    """

    needs = (Features(), Logits(), Labels())
    supervision = "id-train"

    def fit(self, train: Reps) -> dict[str, Tensor]:
        h, z, labels = train[Features()], train[Logits()], train[Labels()].long()
        correct = z.argmax(1) == labels
        keep = correct if bool(correct.any()) else ~correct
        return {"patterns": class_means(h[keep], labels[keep], z.shape[1])}

    def score(self, reps: Reps, patterns: Tensor) -> Tensor:
        return -(reps[Features()].double() * patterns[reps[Logits()].argmax(1)]).sum(1)
