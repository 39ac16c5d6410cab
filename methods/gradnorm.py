"""GradNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from howsure import Features, Logits, Method, Reps, Uniform
from howsure.values import Names

from ._gradients import ChosenGradL1, ChosenGradNorms, uniform_residual


@dataclass(frozen=True)
class GradNorm(Method):
    """GradNorm. Huang et al., 2021, arXiv:2110.00218.

    score = -‖∂CE(u, softmax(z / T)) / ∂W‖₁, u the uniform distribution; shape [N], higher means more uncertain.

    At the weight of the last layer, as published (`layers` None), the gradient is the outer product e hᵀ with
    e = (softmax(z / T) - 1/C) / T, so the norm is ‖e‖₁ ‖h‖₁: no backward pass. `layers` may instead be glob patterns of
    parameter names (`("*",)` for all), over which the norm is summed; then `norm` "l2_squared" takes one batched
    backward pass, "l1" one backward pass per image.
    """

    temperature: PositiveFloat = 1.0
    norm: Literal["l1", "l2_squared"] = "l1"
    layers: Names | None = None

    grid = {"temperature": (0.5, 1.0, 2.0, 4.0)}

    @property
    def needs(self):
        if self.layers is None:
            return (Features(), Logits())
        norms = ChosenGradL1 if self.norm == "l1" else ChosenGradNorms
        return (norms(self.layers, Uniform(self.temperature)),)

    def score(self, reps: Reps) -> Tensor:
        if self.layers is not None:
            return -reps[self.needs[0]].double().sum(1)
        e, h = uniform_residual(reps[Logits()], self.temperature), reps[Features()].double()
        if self.norm == "l1":
            return -e.abs().sum(1) * h.abs().sum(1)
        return -e.square().sum(1) * h.square().sum(1)
