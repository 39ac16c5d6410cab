from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Head, Logits, Method, Reps

from ._rows import by_rows


@dataclass(frozen=True)
class FDBD(Method):
    """Fast decision-boundary based detector. Liu & Qin, 2024, arXiv:2312.11536.

    score = -(mean over c != y of (z_y - z_c) / |w_y - w_c|) / |h - mu|, y the predicted class, mu the mean training
    feature; shape [N], higher means more uncertain.

    `distance_as_normalizer=False` divides by |h| instead. Classes with the same weights have no boundary between them
    and count as distance 0.
    """

    distance_as_normalizer: bool = True

    needs = (Features(), Logits(), Head())
    supervision = "id-train"
    grid = {"distance_as_normalizer": (True, False)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        w = train[Head()].weight.double()
        apart = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist")
        centre = train[Features()].double().mean(0)
        return {
            "per_distance": torch.where(apart > 0, 1 / apart, 0.0),
            "centre": centre if self.distance_as_normalizer else torch.zeros_like(centre),
        }

    def score(self, reps: Reps, per_distance: Tensor, centre: Tensor) -> Tensor:
        others = max(1, len(per_distance) - 1)

        def closeness(h: Tensor, z: Tensor) -> Tensor:
            top, y = z.double().max(1, keepdim=True)
            boundaries = ((top - z) * per_distance[y[:, 0]]).sum(1) / others
            return -boundaries / (h.double() - centre).norm(dim=1).clamp_min(1e-8)

        return by_rows(closeness, reps[Features()], reps[Logits()])
