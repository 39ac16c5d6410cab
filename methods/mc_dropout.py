"""Monte-Carlo dropout, and the representation it scores: logits of several stochastic passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from howsure import Batch, Method, Network, Representation, Reps

from ._passes import changed, mutual_information, predictive_entropy

CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def dropouts(model: nn.Module) -> dict[str, float]:
    """Names and rates of the dropout layers with a rate above 0."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Dropout, *CHANNEL))}
    return {name: m.p for name, m in layers.items() if m.p > 0}


@dataclass(frozen=True)
class StochasticLogits(Representation[Tensor]):
    """Logits of `samples` passes with dropout on, `[N, samples, C]`; everything else stays in eval mode.

    Each pass drops the same units for every image: it is one thinned network, drawn once. So scores depend neither on
    the batch nor on the order of images. No module is switched to training mode.
    """

    cost = "passes"
    reads_logits = False
    samples: int = 20
    seed: int = 0

    def skip(self, network: Network) -> str | None:
        return None if dropouts(network.model) else "MC dropout needs dropout layers with p > 0; the network has none"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return torch.stack([self._sample(batch, s) for s in range(self.samples)], 1)

    def _sample(self, batch: Batch, s: int) -> Tensor:
        model = batch.network.model
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + s)

        def drop(rate: float, whole: bool):
            def change(output: Tensor) -> Tensor:
                shape = [1, output.shape[1], *[1] * (output.dim() - 2)] if whole else [1, *output.shape[1:]]
                kept = (torch.rand(shape, generator=generator) >= rate) / max(1 - rate, 1e-12)
                return output * kept.to(output)

            return change

        layers = dropouts(model)
        whole = {name: isinstance(model.get_submodule(name), CHANNEL) for name in layers}
        with torch.no_grad(), changed(model, {name: drop(rate, whole[name]) for name, rate in layers.items()}):
            return model(batch.images)


@dataclass(frozen=True)
class MCDropout(Method):
    """Monte-Carlo dropout. Gal & Ghahramani, 2016, arXiv:1506.02142.

    score = H(mean_s p_s) ("entropy"), or H(mean_s p_s) - mean_s H(p_s) ("mutual_information"), over S passes with
    dropout on; shape [N], higher means more uncertain. S forward passes.

    Each pass has one mask, shared by all images (a sample of the network's weights); the paper draws one per image.
    """

    samples: PositiveInt = 20
    measure: Literal["entropy", "mutual_information"] = "entropy"
    seed: NonNegativeInt = 0

    test_params = {"samples": 3}

    @property
    def needs(self):
        return (StochasticLogits(self.samples, self.seed),)

    def score(self, reps: Reps) -> Tensor:
        measure = predictive_entropy if self.measure == "entropy" else mutual_information
        return measure(reps[self.needs[0]])
