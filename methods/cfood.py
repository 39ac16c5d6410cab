from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from howsure import Features, Method, Reps
from howsure.values import Share

from ._neighbours import share_of_rows
from ._rows import by_rows

LARGEST_BANK = 4_000


@dataclass(frozen=True)
class CFOOD(Method):
    """Concentration-free outlier factor on features. Angiulli et al., 2026, after arXiv:1901.04992.

    score = min {k / n : x is among the k nearest neighbours of at least rho n of n training images}, on h / |h|;
    shape [N], higher means more uncertain.

    `bank` is the share of training images kept, evenly spaced and at most 4,000, since the state grows with the square
    of their number (the paper samples too): from 40,000 training images on, all values in the grid keep the same ones.
    An image is not its own neighbour. k is exact; OpenOOD rounds it up to one of 230 values.
    """

    bank: Share = 0.1
    rho: Share = 0.01

    needs = (Features(),)
    supervision = "id-train"
    grid = {"bank": (0.1, 0.5, 1.0), "rho": (0.001, 0.005, 0.01, 0.05)}
    test_params = {"bank": 1.0}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        n = len(train[Features()])
        v = _unit(train[Features()][share_of_rows(n, min(self.bank, LARGEST_BANK / n))])
        return {"bank": v, "distances": _sq_distances(v, v).fill_diagonal_(0).sort(1).values}

    def score(self, reps: Reps, bank: Tensor, distances: Tensor) -> Tensor:
        n = len(bank)
        enough = max(1, math.ceil(self.rho * n))

        def factor(v: Tensor) -> Tensor:
            ranks = torch.searchsorted(distances, _sq_distances(bank, v)).clamp_min(1)
            return ranks.kthvalue(enough, dim=0).values.double() / n

        return by_rows(factor, _unit(reps[Features()]), size=512)


def _unit(features: Tensor) -> Tensor:
    return normalize(features.double(), dim=1)


def _sq_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances `[A, B]`, float32, computed in float64: in narrow classes, rounding would dominate."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0).float()
