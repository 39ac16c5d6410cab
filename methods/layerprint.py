"""Layerprint, and the representation it scores: how unusual the statistics of the first layers' channels are."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from pydantic import PositiveInt
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from howsure import Batch, Features, Logits, Method, Network, Representation, Reps, Tap
from howsure.layers import by_channel
from howsure.readings import few_at_a_time, rms_difference
from howsure.representations import NO_LAYERS, ImageIds
from howsure.values import Fraction

from ._neighbours import kth_distance, unit
from ._profiles import distance_around, first_half, fit_around, log_distance, moments, telling_layers

SHRINKAGE = 0.1
RIDGE = 0.1


def channel_statistics(value: Tensor, layer: nn.Module) -> Tensor:
    """For each channel the mean, the standard deviation, and the root mean square difference of positions one apart and
    one row apart, `[n, 4, C]`.

    The length of a row is the square root of the number of positions; with fewer than four, the differences are 0.
    """
    return few_at_a_time(_statistics, by_channel(value, layer))


def _statistics(x: Tensor) -> Tensor:
    mean, row = x.mean(2), isqrt(x.shape[2])
    apart = (
        [rms_difference(x[..., step:], x[..., :-step]) for step in (1, row)]
        if row > 1
        else [torch.zeros_like(mean)] * 2
    )
    return torch.stack([mean, rms_difference(x, mean[..., None]), *apart], 1)


def first_layers(network: Network) -> list[str]:
    """At most four of the `telling_layers`, evenly spaced over their first half."""
    names = telling_layers(network)
    half = (len(names) + 1) // 2
    return [names[i] for i in sorted({round(i * (half - 1) / 3) for i in range(4)})] if names else []


@dataclass(frozen=True)
class ChannelStatistics(Representation[dict[str, Tensor]]):
    """Statistics of the channels of a few layers of the first half, `{layer: [N, 4, C_l]}`."""

    def skip(self, network: Network) -> str | None:
        return None if first_layers(network) else NO_LAYERS

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, channel_statistics) for name in first_layers(network))

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class StatisticDistances(Representation[Tensor]):
    """How much more than usual the statistics of each layer deviate from what the features predict, `[N, L]`.

    The channel means and the logs of the three spreads are predicted from the unit features by ridge regression. A
    layer's entry is the log squared Mahalanobis length of the residual, minus its own prediction from the features.
    Fitted on one half of the training images.
    """

    shrinkage: float = 0.01

    needs = (ChannelStatistics(), Features(), ImageIds())

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return (*ChannelStatistics().taps(network), *Features().taps(network))

    def fit(self, train: Reps) -> dict[str, Tensor]:
        half = first_half(train[ImageIds()])
        features = unit(train[Features()][half]).double()
        state: dict[str, Tensor] = {}
        distances = []
        for name, x in train[ChannelStatistics()].items():
            floor = 1e-3 * x[half, 1].double().square().mean().sqrt().clamp_min(1e-30)
            statistics = _logs(x[half], floor)
            slope, offset = _ridge(features, statistics)
            rest = statistics - offset - features @ slope
            whiten = fit_around(rest, torch.zeros(len(rest), dtype=torch.long), 1, self.shrinkage)["whiten"]
            distances.append(log_distance((rest @ whiten).square().sum(1)))
            parts = {"floor": floor, "slope": slope, "offset": offset, "whiten": whiten}
            state |= {f"{part} {name}": value for part, value in parts.items()}
        slope, offset = _ridge(features, torch.stack(distances, 1))
        return {**state, "slope": slope, "offset": offset}

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        state = {name: value.to(batch.logits.device) for name, value in state.items()}
        features, columns = unit(Features().compute(batch)).double(), []
        for name, x in ChannelStatistics().compute(batch).items():
            floor, slope, offset, whiten = (state[f"{part} {name}"] for part in ("floor", "slope", "offset", "whiten"))
            rest = _logs(x, floor) - offset - features @ slope
            columns.append(log_distance((rest @ whiten).square().sum(1)))
        return torch.stack(columns, 1) - state["offset"] - features @ state["slope"]


@dataclass(frozen=True)
class LayerPrint(Method):
    """Layerprint: statistics of the first layers' channels, and energy and neighbours at the last. This project.

    At up to four layers, evenly spaced over the first half of the normalisation layers (if all are layer norms of
    tokens: of the linear layers but the last), x_l holds for each channel the mean over positions and the logs of the
    standard deviation and of the root mean square differences of neighbours, along and across. With u the unit features
    and E[· | u] linear in them, m_l = log squared Mahalanobis length of x_l - E[x_l | u], d_l = m_l - E[m_l | u], and
    D = Mahalanobis length of (d_1, …, d_L). With s(·) for standardising,
    score = max(0, s(s(Σ_l d_l) + ½ s(D))) + s(s(-logsumexp(z)) + s(knn)), knn = distance to the k-th nearest feature of
    unit norm; shape [N], higher means more uncertain. No outliers are seen. One forward pass.

    One half of the training images gives everything up to d_l and the neighbours; D and s are fitted on the other half.
    `shrinkage` is the weight of the diagonal in the covariance of the residuals of x_l; in that of D it is 0.1.
    """

    k: PositiveInt = 10
    shrinkage: Fraction = 0.01

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
        layers, output = ((_pairs(self._terms(reps, **state), mean, std) - pair_mean) / pair_std).unbind(1)
        return layers.clamp_min(0) + output

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


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope `[D, T]` and offset `[T]` of a linear prediction of rows `[N, T]` from rows `[N, D]`, float64."""
    mean, std = moments(x)
    model = Ridge(RIDGE * len(x)).fit(((x - mean) / std).numpy(), y.numpy())
    slope = torch.from_numpy(model.coef_).reshape(y.shape[1], -1).T / std[:, None]
    return slope, torch.from_numpy(model.intercept_) - mean @ slope
