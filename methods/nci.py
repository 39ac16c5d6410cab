from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeFloat
from torch import Tensor

from howsure import Features, Head, Logits, Method, Reps

from ._rows import by_rows


@dataclass(frozen=True)
class NCI(Method):
    """Neural-collapse inspired score. Liu & Qin, 2025, arXiv:2311.01479.

    score = -(h - mu) . w_y / |h - mu| - alpha |h|_1, y the predicted class, mu the mean training feature; shape [N],
    higher means more uncertain.

    The default of `alpha` is that of the authors' code and of OpenOOD, which have the same formula; pytorch-ood's is 0.
    """

    alpha: NonNegativeFloat = 1e-4

    needs = (Features(), Logits(), Head())
    supervision = "id-train"
    grid = {"alpha": (1e-4, 1e-3, 1e-2, 1e-1)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        return {"centre": train[Features()].double().mean(0)}

    def score(self, reps: Reps, centre: Tensor) -> Tensor:
        weight = reps[Head()].weight.double()

        def collapse(h: Tensor, z: Tensor) -> Tensor:
            offset = h.double() - centre
            proximity = (offset * weight[z.argmax(1)]).sum(1) / offset.norm(dim=1).clamp_min(1e-8)
            return -proximity - self.alpha * h.double().abs().sum(1)

        return by_rows(collapse, reps[Features()], reps[Logits()])
