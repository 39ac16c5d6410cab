"""Mahalanobis distance of gradient norms."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from howsure import GradNorms, Logits, Loss, Method, Reps, Uniform
from howsure.detector import log_norms
from howsure.values import Fraction

from ._profiles import distance_around, fit_around


@dataclass(frozen=True)
class GradVectorMahalanobis(Method):
    """Mahalanobis distance in log-norm space. One-class form of Lee & AlRegib, 2020, arXiv:2008.08030.

    v = (log ‖g_1‖², …, log ‖g_P‖²), g_p the gradient of `loss` with respect to parameter set p. score = squared
    Mahalanobis distance of v to the mean of the predicted class (`per_class`), or to one mean, of in-distribution
    training images; shape [N], higher means more uncertain. No outliers are seen. One backward pass.

    `shrinkage` is the weight of the covariance's own diagonal.
    """

    loss: Loss = field(default_factory=Uniform)
    per_class: bool = True
    shrinkage: Fraction = 0.1

    supervision = "id-train"

    @property
    def needs(self):
        return (GradNorms(self.loss), Logits())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        groups = train[Logits()].shape[1] if self.per_class else 1
        return fit_around(log_norms(train[GradNorms(self.loss)]), self._group(train), groups, self.shrinkage)

    def score(self, reps: Reps, means: Tensor, whiten: Tensor) -> Tensor:
        return distance_around(log_norms(reps[GradNorms(self.loss)]), self._group(reps), means, whiten)

    def _group(self, reps: Reps) -> Tensor:
        predicted = reps[Logits()].argmax(1)
        return predicted if self.per_class else torch.zeros_like(predicted)
