"""Gradprint, and a representation that it scores in addition to gradient norms: channel-wise gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from pydantic import PositiveInt
from torch import Tensor

from howsure import Batch, GradNorms, Logits, Loss, Method, Network, Predicted, Representation, Reps, Uniform
from howsure.detector import log_norms
from howsure.layers import Normalisation
from howsure.values import Fraction

from ._profiles import distance_around, fit_around, log_distance, moments


def shift_columns(network: Network, at_most: int) -> Tensor:
    """Columns of `SmallGrads` that belong to biases of normalisation layers, at most `at_most`, evenly spaced.

    If no normalisation layer has a bias, those of all biases; without any, those of all one-dimensional parameters.
    """
    model = network.model
    norms = {id(getattr(m, "bias", None)) for m in model.modules() if isinstance(m, Normalisation)}
    small = [(name, p) for name, p in model.named_parameters() if p.dim() == 1]
    wanted = [[id(p) in norms for _, p in small], [name.endswith("bias") for name, _ in small], [True] * len(small)]
    chosen = next((keep for keep in wanted if any(keep)), [])
    sizes = torch.tensor([p.numel() for _, p in small], dtype=torch.long)
    columns = torch.tensor(chosen, dtype=torch.bool).repeat_interleave(sizes).nonzero()[:, 0]
    picked = torch.linspace(0, len(columns) - 1, min(at_most, len(columns))).round().long()
    return columns[picked]


@dataclass(frozen=True)
class ShiftGrads(Representation[Tensor]):
    """Gradients of the biases of normalisation layers, `[N, at most "columns"]`."""

    cost = "backward"
    small = True
    loss: Loss = field(default_factory=Predicted)
    columns: int = 2048

    def skip(self, network: Network) -> str | None:
        return None if len(shift_columns(network, 1)) else "gradprint needs biases; the network has none"

    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        small = batch.grads[self.loss].small
        assert small is not None
        return small[:, shift_columns(batch.network, self.columns).to(small.device)]


@dataclass(frozen=True)
class GradPrint(Method):
    """Gradprint: one-class distances of gradients. This project; after Lee & AlRegib, 2020, arXiv:2008.08030.

    (a) v = log ‖g_p‖² for each parameter set p, g the gradient under the cross-entropy to the uniform distribution;
    (b) w = log(|g_c| + ε_c) for each channel c of the biases of normalisation layers, g the gradient under the
    cross-entropy to the predicted class, ε_c a ten-thousandth of the channel's root mean square in training;
    |g_c| counts as 1e-7 of the largest channel's if it is less, which may be rounding.
    For each, take the log of the squared Mahalanobis distance to the mean of the predicted class, standardised on
    in-distribution training images (except those that are alone in their class, and hence its mean); score = their sum;
    shape [N], higher means more uncertain. No outliers are seen. Two backward passes.

    `shrinkage` and `shift_shrinkage` are the weights of the covariances' own diagonals. Networks without normalisation
    use all biases. At most `columns` channels are used, evenly spaced.
    """

    shrinkage: Fraction = 0.1
    shift_shrinkage: Fraction = 0.6
    columns: PositiveInt = 2048

    supervision = "id-train"
    test_params = {"columns": 16}

    @property
    def needs(self):
        return (GradNorms(Uniform()), ShiftGrads(Predicted(), self.columns), Logits())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        shifts = train[self.needs[1]].double()
        size = shifts.square().mean(0).sqrt()
        floors = {"floor": 1e-4 * size.clamp_min(1e-30), "least": 1e-7 * size.amax()}
        state = dict(floors)
        group, groups = train[Logits()].argmax(1), train[Logits()].shape[1]
        several = group.bincount()[group] > 1
        vectors = zip(self._vectors(train, **floors), (self.shrinkage, self.shift_shrinkage), strict=True)
        for i, (v, shrinkage) in enumerate(vectors):
            gaussian = fit_around(v, group, groups, shrinkage)
            distance = log_distance(distance_around(v, group, **gaussian))
            mean, std = moments(distance[several] if several.any() else distance)
            state |= {f"{key}{i}": value for key, value in gaussian.items()} | {f"mean{i}": mean, f"std{i}": std}
        return state

    def score(self, reps: Reps, floor: Tensor, least: Tensor, **state: Tensor) -> Tensor:
        group, total = reps[Logits()].argmax(1), torch.zeros(len(reps[Logits()]), dtype=torch.float64)
        for i, v in enumerate(self._vectors(reps, floor, least)):
            distance = log_distance(distance_around(v, group, state[f"means{i}"], state[f"whiten{i}"]))
            total = total + (distance - state[f"mean{i}"]) / state[f"std{i}"]
        return total

    def _vectors(self, reps: Reps, floor: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        shifts = reps[self.needs[1]].double().abs().clamp_min(least)
        return log_norms(reps[self.needs[0]]), (shifts + floor).log()
