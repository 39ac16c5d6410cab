"""What both forms of AdaSCALE share: features after a small change of the input, and the factor derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from howsure import Batch, Features, Head, Method, Network, Representation, Reps, UserError
from howsure.values import Fraction, Percentile

from ._passes import features, input_gradient

LEVELS = (60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True)
class PerturbedFeatures(Representation[Tensor]):
    """Penultimate features after a change of the input values that matter least to the top logit, `[N, D]`.

    The share `o` of input values with the smallest gradients moves by `epsilon` (in normalised inputs) along their
    signs.
    """

    cost = "passes"
    reads_logits = False
    o: float = 0.05
    epsilon: float = 0.5

    def skip(self, network: Network) -> str | None:
        return Features().skip(network)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        x = batch.images
        gradient = input_gradient(batch.network.model, x, lambda logits: logits.amax(1))
        least = gradient.flatten(1).abs().topk(int(self.o * gradient[0].numel()), largest=False).indices
        mask = torch.zeros_like(gradient).flatten(1).scatter_(1, least, 1).view_as(gradient)
        return features(batch.network, x + self.epsilon * mask * gradient.sign())


@dataclass(frozen=True)
class _AdaScale(Method):
    percentile: tuple[float, float] = (75.0, 85.0)
    k1: Percentile = 1.0
    k2: Percentile = 5.0
    lmbda: NonNegativeFloat = 10.0
    o: Fraction = 0.05

    supervision = "id-train"
    fit_split = "val"
    grid = {"percentile": tuple(combinations(LEVELS, 2))}

    @property
    def needs(self):
        return (Features(), PerturbedFeatures(self.o), Head())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        low, high = self.percentile
        if not 0 <= low <= high <= 100:
            raise UserError(f"adascale: percentile = ({low}, {high}) must be two percentages, the lower one first")
        return {"reference": self._shift(train).sort().values}

    def factor(self, reps: Reps, reference: Tensor) -> Tensor:
        """`r [N, 1]`: the sum of the rectified activations over the sum of those above the image's own percentile."""
        below = torch.searchsorted(reference, self._shift(reps), right=True) / len(reference)
        low, high = self.percentile
        percentile = low + (1 - below.double()) * (high - low)
        h = reps[Features()].double().relu().sort(1, descending=True).values
        kept = (h.shape[1] - (h.shape[1] * percentile / 100).round()).clamp_min(1)
        top = h * (torch.arange(h.shape[1]) < kept[:, None])
        return h.sum(1, keepdim=True) / top.sum(1, keepdim=True).clamp_min(1e-12)

    def _shift(self, reps: Reps) -> Tensor:
        h, moved = reps[Features()].double(), reps[PerturbedFeatures(self.o)].double()
        correction = moved.relu().gather(1, _top(h, self.k2)).sum(1)
        return self.lmbda * (h - moved).abs().gather(1, _top(h, self.k1)).sum(1) + correction


def _top(h: Tensor, percent: float) -> Tensor:
    return h.topk(max(1, int(h.shape[1] * percent / 100)), dim=1).indices
