"""Random temperature scaling, and the representation it scores: the variance of a learned temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Batch, Method, Network, Representation, Reps


@dataclass(frozen=True)
class TemperatureVariance(Representation[Tensor]):
    """What the model's own `temperature_variance(images)` returns, `[N]`, or `[N, k]` averaged over k."""

    cost = "passes"
    reads_logits = False

    def skip(self, network: Network) -> str | None:
        if callable(getattr(network.model, "temperature_variance", None)):
            return None
        return "RTS needs a network trained with it: a method temperature_variance(images) on the model"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        with torch.no_grad():
            return batch.network.model.temperature_variance(batch.images).reshape(len(batch.images), -1).mean(1)  # type: ignore[operator]


@dataclass(frozen=True)
class RTS(Method):
    """Random temperature scaling. Shang et al., 2023, arXiv:2212.01015.

    score = mean of the variances of the temperature that divides the logits, as a head trained with the network
    predicts them; shape [N], higher means more uncertain: training makes the temperature large where the network errs.
    OpenOOD's code returns the same number as a confidence. Only for models that have a method `temperature_variance`.
    """

    needs = (TemperatureVariance(),)

    def score(self, reps: Reps) -> Tensor:
        return reps[self.needs[0]]
