"""Actprint, and the representation it scores: how far each layer's channel statistics are from those in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Batch, Logits, Method, Network, Representation, Reps, Tap
from howsure.readings import channel_moments
from howsure.representations import NO_LAYERS, ImageIds
from howsure.values import Fraction

from ._profiles import distance_around, first_half, fit_around, log_distance, moments, telling_layers


@dataclass(frozen=True)
class ChannelMoments(Representation[dict[str, Tensor]]):
    """Means and standard deviations over positions of the channels of `telling_layers`, `{layer: [N, 2, C_l]}`."""

    def skip(self, network: Network) -> str | None:
        return None if telling_layers(network) else NO_LAYERS

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, channel_moments) for name in telling_layers(network))

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class MomentDistances(Representation[Tensor]):
    """Log squared Mahalanobis distance to the mean of the predicted class at each of the `telling_layers`, `[N, L]`.

    Fitted on one half of the in-distribution training images.
    """

    shrinkage: float = 0.1

    needs = (ChannelMoments(), Logits(), ImageIds())

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return ChannelMoments().taps(network)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        half, logits = first_half(train[ImageIds()]), train[Logits()]
        state = {}
        for name, x in train[ChannelMoments()].items():
            gaussian = fit_around(x[half].flatten(1), logits[half].argmax(1), logits.shape[1], self.shrinkage)
            state[f"means {name}"], state[f"whiten {name}"] = gaussian["means"].float(), gaussian["whiten"].float()
        return state

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        predicted, columns = batch.logits.argmax(1), []
        for tap in self.taps(batch.network):
            means, whiten = (state[f"{part} {tap.layer}"].to(batch.logits.device) for part in ("means", "whiten"))
            distance = distance_around(batch.readings[tap].flatten(1), predicted, means, whiten)
            columns.append(log_distance(distance.double()))
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class ActPrint(Method):
    """Actprint: one-class distances of activations at every layer. This project.

    At each normalisation layer (if all are layer norms of tokens: at each linear layer but the last), take the means
    and standard deviations of the channels over positions; d_l is their log squared Mahalanobis distance to the mean
    of the predicted class, fitted on one half of the in-distribution training images. D is the Mahalanobis distance
    of the profile (d_1, …, d_L), fitted on the other half. score = D + Σ_l d_l - logsumexp(z), each term standardised
    on the other half; shape [N], higher means more uncertain. No outliers are seen. One forward pass.

    `shrinkage` is the weight of each covariance's own diagonal.
    """

    shrinkage: Fraction = 0.1

    supervision = "id-train"

    @property
    def needs(self):
        return (MomentDistances(self.shrinkage), Logits(), ImageIds())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        first = first_half(train[ImageIds()])
        other = train.take(first if first.all() else ~first)
        profile = other[self.needs[0]]
        gaussian = fit_around(profile, torch.zeros(len(profile), dtype=torch.long), 1, self.shrinkage)
        mean, std = moments(self._terms(other, **gaussian))
        return {**gaussian, "mean": mean, "std": std}

    def score(self, reps: Reps, means: Tensor, whiten: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return ((self._terms(reps, means, whiten) - mean) / std).sum(1)

    def _terms(self, reps: Reps, means: Tensor, whiten: Tensor) -> Tensor:
        profile, logits = reps[self.needs[0]], reps[Logits()].double()
        distance = distance_around(profile, torch.zeros(len(profile), dtype=torch.long), means, whiten).sqrt()
        return torch.stack([distance, profile.sum(1), -torch.logsumexp(logits, 1)], 1)
