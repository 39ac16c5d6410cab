"""Gram matrices, and the representation they score: row sums of the Gram matrices of feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from howsure import Batch, Logits, Method, Network, Representation, Reps, Tap
from howsure.layers import by_channel
from howsure.values import Names

POWERS = 10
FLOOR = 1e-6


def gram_rows(value: Tensor, layer: nn.Module) -> Tensor:
    """Row sums of the Gram matrices of order p = 1 to 10, to the power 1 / p, `[n, 10, C]`, float32."""
    x = by_channel(value, layer).double()
    largest = x.abs().amax((1, 2), keepdim=True).clamp_min(1e-30)
    x, rows, power = x / largest, [], torch.ones((), dtype=torch.float64, device=x.device)
    for p in range(1, POWERS + 1):
        power = power * x
        total = (power * power.sum(1, keepdim=True)).sum(2)
        rows.append(total.sign() * total.abs() ** (1 / p))
    return (torch.stack(rows, 1) * largest.square()).float()


@dataclass(frozen=True)
class GramRows(Representation[dict[str, Tensor]]):
    """Row sums of Gram matrices of order 1 to 10 at the last layer of each stage, `{layer: [N, 10, C_l]}`."""

    layers: tuple[str, ...] | None = None

    def skip(self, network: Network) -> str | None:
        found = self.layers or network.stages
        return None if found else "Gram matrices need a feature map; the network has none"

    def taps(self, network: Network) -> tuple[Tap, ...]:
        names = self.layers or network.stages
        return tuple(Tap(name, gram_rows) for name in names)

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class Gram(Method):
    """Gram matrices. Sastry & Oore, 2020, arXiv:1912.12510.

    G_p = (F^p F^pᵀ)^(1/p) of a feature map F [C, positions], p = 1 … P, summed over rows. δ_l is the sum, over p and
    channels, of how far a value lies outside the range [min, max] of training images of the predicted class, relative
    to the nearer end. score = Σ_l δ_l / E[δ_l]; shape [N], higher means more uncertain. One forward pass.

    Row sums are used as in the authors' code; the paper's text uses the upper triangle, which takes a thousand times as
    much memory. The code, unlike the paper's formula, also divides by the softmax confidence. The expectation is over
    every tenth training image of each predicted class, which the ranges leave out (the paper uses a validation split).
    Layers are the last of each stage; the paper uses every convolution and activation.
    """

    power: Annotated[int, Interval(ge=1, le=POWERS)] = POWERS
    layers: Names | None = None

    supervision = "id-train"
    grid = {"power": (1, 2, 5, 10)}

    @property
    def needs(self):
        return (GramRows(self.layers), Logits())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        predicted, classes = train[Logits()].argmax(1), train[Logits()].shape[1]
        held = _every_tenth(predicted)
        state = {}
        for i, x in enumerate(self._layers(train)):
            low, high = _ranges(x[~held], predicted[~held], classes)
            state[f"low{i:03d}"], state[f"high{i:03d}"] = low, high
        deviations = self._deviations(train, state)[held if held.any() else ~held]
        return {**state, "expected": deviations.mean(0).clamp_min(1e-7)}

    def score(self, reps: Reps, expected: Tensor, **ranges: Tensor) -> Tensor:
        return (self._deviations(reps, ranges) / expected).sum(1)

    def _layers(self, reps: Reps) -> list[Tensor]:
        rows = reps[GramRows(self.layers)]
        return [rows[name][:, : self.power].flatten(1) for name in sorted(rows)]

    def _deviations(self, reps: Reps, ranges: dict[str, Tensor]) -> Tensor:
        predicted, columns = reps[Logits()].argmax(1), []
        for i, x in enumerate(self._layers(reps)):
            low, high = ranges[f"low{i:03d}"][predicted], ranges[f"high{i:03d}"][predicted]
            below, above = (low - x).relu() / (low.abs() + FLOOR), (x - high).relu() / (high.abs() + FLOOR)
            columns.append((below + above).double().sum(1))
        return torch.stack(columns, 1)


def _every_tenth(predicted: Tensor) -> Tensor:
    """Whether each image is a tenth one of its predicted class, `[N]`."""
    order, counts = predicted.argsort(stable=True), predicted.bincount()
    place = torch.empty_like(predicted)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[predicted[order]]
    return place % 10 == 9


def _ranges(x: Tensor, predicted: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest values for each class, `[classes, D]`; a class never predicted has those of all rows."""
    index = predicted[:, None].expand_as(x)
    low, high = x.amin(0).repeat(classes, 1), x.amax(0).repeat(classes, 1)
    return (
        low.scatter_reduce(0, index, x, "amin", include_self=False),
        high.scatter_reduce(0, index, x, "amax", include_self=False),
    )
