"""GradOrth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Logits, Method, Reps
from howsure.values import Fraction

from ._gradients import uniform_residual


@dataclass(frozen=True)
class GradOrth(Method):
    """GradOrth. Behpour et al., 2023, arXiv:2308.00310.

    V are the leading right singular vectors of the training features [N, D] that contain the share `threshold` of their
    squared norm. The gradient of the last layer's weight under the cross-entropy to the uniform distribution is e hᵀ.
    score = -‖e hᵀ V Vᵀ‖_F = -‖e‖₂ ‖Vᵀ h‖₂; shape [N], higher means more uncertain (little of the gradient lies in the
    subspace of in-distribution data). No backward pass.
    """

    threshold: Fraction = 0.97

    supervision = "id-train"
    grid = {"threshold": (0.9, 0.95, 0.97, 0.99)}

    needs = (Features(), Logits())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        h = train[Features()].double()
        energy, vectors = torch.linalg.eigh(h.T @ h)
        energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)
        rank = int((energy.cumsum(0) < self.threshold * energy.sum()).sum()) + 1
        return {"subspace": vectors[:, :rank].contiguous()}

    def score(self, reps: Reps, subspace: Tensor) -> Tensor:
        return -uniform_residual(reps[Logits()]).norm(dim=1) * (reps[Features()].double() @ subspace).norm(dim=1)
