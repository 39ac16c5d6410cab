"""Neuron activation coverage, and the representation it scores if layers are named."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from howsure import Batch, Features, Head, Logits, Method, Representation, Reps, Uniform
from howsure.layers import by_channel, module
from howsure.values import Names

from ._gradients import uniform_residual
from ._passes import recorded, tracked


@dataclass(frozen=True)
class NeuronStates(Representation[dict[str, Tensor]]):
    """`(Σ z) (Σ ∂CE / ∂z)` at named layers, summed over positions, `{layer: [N, C_l]}`.

    CE is the cross-entropy to the uniform distribution.
    """

    cost = "passes"
    reads_logits = False
    layers: tuple[str, ...] = ()

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        model = batch.network.model
        with torch.enable_grad(), recorded(model, self.layers) as outputs:
            loss = Uniform()(model(tracked(batch.images))).sum()
            gradients = torch.autograd.grad(loss, [outputs[name] for name in self.layers])
        states = {}
        for name, gradient in zip(self.layers, gradients, strict=True):
            z, g = (by_channel(t.detach(), module(model, name)).sum(2) for t in (outputs[name], gradient))
            states[name] = z * g
        return states


@dataclass(frozen=True)
class NAC(Method):
    """Neuron activation coverage. Liu et al., 2024, arXiv:2306.02879.

    A neuron's state is σ(α z ∂CE/∂z), CE the cross-entropy to the uniform distribution. Φ of a state is min(n, r) / r,
    n the number of training images whose state lies in the same of M equal parts of [0, 1]. score = -mean Φ over
    neurons and layers; shape [N], higher means more uncertain.

    At the penultimate features, the default, the gradient has a closed form: no backward pass. Named `layers` take one;
    the authors' runs on residual networks use the penultimate features and the first three stages.

    `samples` training images are used, as many as in the paper (`r` counts images), but evenly spaced; the authors'
    code draws them at random, as many of each class. It spaces the M parts more densely around 1/2, so that its α means
    something else, and tunes α, r and M for each layer and network; here all layers share them.
    """

    alpha: PositiveFloat = 100.0
    r: PositiveInt = 50
    m: PositiveInt = 50
    samples: PositiveInt = 1000
    layers: Names | None = None

    supervision = "id-train"
    grid = {"alpha": (1.0, 10.0, 100.0, 1000.0, 3000.0), "r": (5, 10, 50, 100), "m": (50, 500)}

    @property
    def needs(self):
        return (NeuronStates(self.layers),) if self.layers else (Features(), Logits(), Head())

    def fit(self, train: Reps) -> dict[str, Tensor]:
        coverage = {}
        for name, parts in self._parts(train).items():
            rows = torch.linspace(0, len(parts) - 1, min(self.samples, len(parts))).round().long()
            seen = parts[rows]
            counts = torch.zeros(self.m, parts.shape[1]).scatter_add_(0, seen, torch.ones(seen.shape))
            coverage[name] = counts.clamp_max(self.r) / self.r
        return coverage

    def score(self, reps: Reps, **coverage: Tensor) -> Tensor:
        covered = [coverage[name].gather(0, parts).mean(1) for name, parts in self._parts(reps).items()]
        return -torch.stack(covered).mean(0)

    def _parts(self, reps: Reps) -> dict[str, Tensor]:
        """Which of the M parts each state is in, by layer, `[N, C_l]`."""
        if self.layers:
            states = reps[NeuronStates(self.layers)]
        else:
            gradient = uniform_residual(reps[Logits()]) @ reps[Head()].weight.double()
            states = {"features": reps[Features()] * gradient}
        return {k: ((self.alpha * s).sigmoid() * self.m).long().clamp_max(self.m - 1) for k, s in states.items()}
