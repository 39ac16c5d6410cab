"""Layerprint, and the representation it scores: how unusual the statistics of the first layers' channels are."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from howsure import Batch, Features, Logits, Method, Network, Representation, Reps, Tap
from howsure.layers import by_channel
from howsure.representations import ImageIds, rms_difference

from ._neighbours import kth_distance, unit
from ._profiles import distance_around, first_half, fit_around, log_distance, moments, telling_layers

SHRINKAGE = 0.1


def channel_statistics(value: Tensor, layer: nn.Module) -> Tensor:
    """Of each channel: mean, deviation, and root mean square difference of positions one apart and a row apart.

    `[n, 4, C]`. A row is the root of the number of positions; of fewer than four, the differences are 0.
    """
    x = by_channel(value, layer)
    mean, row = x.mean(2), isqrt(x.shape[2])
    apart = (
        [rms_difference(x[..., step:], x[..., :-step]) for step in (1, row)]
        if row > 1
        else [torch.zeros_like(mean)] * 2
    )
    return torch.stack([mean, rms_difference(x, mean[..., None]), *apart], 1)


def first_layers(network: Network) -> list[str]:
    """At most four of the telling layers, evenly spaced over their first half."""
    names = telling_layers(network)
    half = (len(names) + 1) // 2
    return [names[i] for i in sorted({round(i * (half - 1) / 3) for i in range(4)})] if names else []


@dataclass(frozen=True)
class ChannelStatistics(Representation[dict[str, Tensor]]):
    """Statistics of the channels of a few layers of the first half, `{layer: [N, 4, C_l]}`."""

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, channel_statistics) for name in first_layers(network))

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class StatisticDistances(Representation[Tensor]):
    """Log squared Mahalanobis distance to the mean of the predicted class at each layer, `[N, L]`.

    Of the channel means and the logs of their three spreads; fitted on one half of the training images.
    """

    shrinkage: float = 0.01

    needs = (ChannelStatistics(), Logits(), ImageIds())

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return ChannelStatistics().taps(network)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        half, logits = first_half(train[ImageIds()]), train[Logits()]
        state: dict[str, Tensor] = {}
        for name, x in train[ChannelStatistics()].items():
            floor = 1e-3 * x[half, 1].double().square().mean().sqrt().clamp_min(1e-30)
            gaussian = fit_around(_logs(x[half], floor), logits[half].argmax(1), logits.shape[1], self.shrinkage)
            state |= {f"floor {name}": floor, f"means {name}": gaussian["means"], f"whiten {name}": gaussian["whiten"]}
        return state

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        predicted, columns = batch.logits.argmax(1), []
        for tap in self.taps(batch.network):
            parts = (state[f"{part} {tap.layer}"].to(batch.logits.device) for part in ("floor", "means", "whiten"))
            floor, means, whiten = parts
            columns.append(
                log_distance(distance_around(_logs(batch.readings[tap], floor), predicted, means, whiten)).double()
            )
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class LayerPrint(Method):
    """Layerprint: statistics of the first layers' channels, and energy and neighbours at the last. This project.

    At up to four layers, evenly spaced over the first half (of the normalisation layers; where all normalise by layer,
    of the linear layers but the last): of each channel the mean over positions and the logs of its deviation and of the
    root mean square difference of neighbours, along and across; d_l = log squared Mahalanobis distance to the mean of
    the predicted class. D = Mahalanobis distance of (d_1, …, d_L). With s(·) for standardising,
    score = s(s(Σ_l d_l) + ½ s(D)) + s(s(-logsumexp(z)) + s(knn)), knn = distance to the k-th nearest feature of unit
    norm; shape [N], higher means more uncertain. No outlier is seen. One forward pass.

    The Gaussians of d_l and the neighbours are one half of the training images; D and s are fitted on the other half.
    `shrinkage` is the weight of the covariances' own diagonals.
    """

    k: int = 50
    shrinkage: float = 0.01

    supervision = "id-train"
    test_params = {"k": 3}

    @property
    def needs(self):
        return (StatisticDistances(self.shrinkage), Logits(), Features(), ImageIds())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        first = first_half(train[ImageIds()])
        other = train.take(first if first.all() else ~first)
        profile = other[self.needs[0]]
        state = fit_around(profile, torch.zeros(len(profile), dtype=torch.long), 1, SHRINKAGE)
        state["bank"] = unit(train[Features()][first])
        mean, std = moments(self._terms(other, **state))
        pair_mean, pair_std = moments(_pairs(self._terms(other, **state), mean, std))
        return {**state, "mean": mean, "std": std, "pair_mean": pair_mean, "pair_std": pair_std}

    def score(self, reps: Reps, mean: Tensor, std: Tensor, pair_mean: Tensor, pair_std: Tensor, **state) -> Tensor:
        return ((_pairs(self._terms(reps, **state), mean, std) - pair_mean) / pair_std).sum(1)

    def _terms(self, reps: Reps, means: Tensor, whiten: Tensor, bank: Tensor) -> Tensor:
        profile, logits = reps[self.needs[0]], reps[Logits()].double()
        distance = distance_around(profile, torch.zeros(len(profile), dtype=torch.long), means, whiten).sqrt()
        neighbour = kth_distance(unit(reps[Features()]), bank, self.k)
        return torch.stack([profile.sum(1), distance, -torch.logsumexp(logits, 1), neighbour], 1)


def _pairs(terms: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    layers, distance, energy, neighbour = ((terms - mean) / std).unbind(1)
    return torch.stack([layers + distance / 2, energy + neighbour], 1)


def _logs(statistics: Tensor, floor: Tensor) -> Tensor:
    """The means and the logs of the spreads as rows `[n, 4 C]`, float64."""
    x = statistics.double()
    return torch.cat([x[:, :1], (x[:, 1:] + floor).log()], 1).flatten(1)
