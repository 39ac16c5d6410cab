from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeInt
from torch import Tensor

from howsure import Features, Head, Method, Reps

from ._null_space import origin_and_null_space, residual_norm


@dataclass(frozen=True)
class Residual(Method):
    """Residual in the null space of the features. Wang et al., 2022, arXiv:2203.10807.

    score = |P (h - o)|, o = -pinv(W) b, P the projection onto all but the `dim` principal directions of training
    features h - o; shape [N], higher means more uncertain. It is `vim` without the logits.
    """

    dim: NonNegativeInt | None = None

    needs = (Features(), Head())
    supervision = "id-train"
    grid = {"dim": (16, 32, 64, 128, 256, 512, 1000)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        origin, null_space = origin_and_null_space(train[Features()], train[Head()], self.dim)
        return {"origin": origin, "null_space": null_space}

    def score(self, reps: Reps, origin: Tensor, null_space: Tensor) -> Tensor:
        return residual_norm(reps[Features()], origin, null_space)
