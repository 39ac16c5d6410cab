"""ODIN, and the representation it scores: logits after a step on the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from howsure import Batch, Logits, Method, Representation, Reps

from ._passes import shared_input_gradient
from ._softmax import doubt, log_odds


@dataclass(frozen=True)
class PerturbedLogits(Representation[Tensor]):
    """Logits of `x + epsilon * sign(gradient of log max softmax(z / temperature))`, `[N, C]`.

    `epsilon` is in pixel values in [0, 1]. The gradient computed is that of log(p / (1 - p)), p = max softmax(z /
    temperature): it has the same sign, and is not lost in rounding when the network is confident.
    """

    cost = "passes"
    reads_logits = False
    temperature: float = 1000.0
    epsilon: float = 0.0014

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        def objective(logits: Tensor) -> Tensor:
            return -log_odds(logits, self.temperature)

        model = batch.network.model
        gradient = batch.share(("odin", self.temperature), lambda: shared_input_gradient(batch, objective))
        step = self.epsilon / batch.network.std * gradient.sign()
        with torch.no_grad():
            return model(batch.images + step)


@dataclass(frozen=True)
class Odin(Method):
    """ODIN. Liang et al., 2018, arXiv:1706.02690.

    score = 1 - max softmax(z(x') / T) with x' = x + ε sign(∇ log max softmax(z(x) / T)); shape [N], higher means more
    uncertain. Two forward passes and one backward pass to the input.

    ε is in pixel values in [0, 1] and is divided by the transform's standard deviation per channel, as in the authors'
    code. Where the gradient is exactly zero, the input does not move (in their code, zero counts as positive).
    """

    temperature: PositiveFloat = 1000.0
    epsilon: NonNegativeFloat = 0.0014

    grid = {"temperature": (1.0, 10.0, 100.0, 1000.0), "epsilon": (0.0, 0.0014, 0.0028, 0.005, 0.01)}

    @property
    def needs(self):
        return (PerturbedLogits(self.temperature, self.epsilon) if self.epsilon else Logits(),)

    def score(self, reps: Reps) -> Tensor:
        return doubt(reps[self.needs[0]], self.temperature)
