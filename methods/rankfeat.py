"""RankFeat, and the representation it scores: logits without the first singular component of a feature map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from howsure import Batch, Method, Network, Representation, Reps
from howsure.layers import channels_come_last
from howsure.values import Names

from ._passes import changed


def without_first_rank(output: Tensor) -> Tensor:
    """Each image's map, as a matrix, without its rank-1 part: `A - A v vᵀ`, v the first right singular vector."""
    matrix = output.flatten(1, 2) if output.dim() == 4 and channels_come_last(output) else output.flatten(2)
    tall = matrix if matrix.shape[1] >= matrix.shape[2] else matrix.transpose(1, 2)
    gram = tall.double().transpose(1, 2) @ tall.double()
    v = torch.linalg.eigh(gram)[1][:, :, -1:].to(tall.dtype)
    rest = tall - (tall @ v) @ v.transpose(1, 2)
    return (rest if tall is matrix else rest.transpose(1, 2)).reshape(output.shape)


@dataclass(frozen=True)
class RankFeatLogits(Representation[Tensor]):
    """Logits without the rank-1 part of each of the last `blocks` stages' feature maps in turn, averaged, `[N, C]`."""

    cost = "passes"
    reads_logits = False
    blocks: int = 2
    layers: tuple[str, ...] | None = None

    def names(self, network: Network) -> list[str]:
        return list(self.layers or network.stages[-self.blocks :])

    def skip(self, network: Network) -> str | None:
        return None if self.names(network) else "RankFeat needs a feature map; the network has none"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return torch.stack([self._without(batch, name) for name in self.names(batch.network)]).mean(0)

    def _without(self, batch: Batch, name: str) -> Tensor:
        with torch.no_grad(), changed(batch.network.model, {name: without_first_rank}):
            return batch.network.model(batch.images)


@dataclass(frozen=True)
class RankFeat(Method):
    """RankFeat. Song et al., 2022, arXiv:2209.08590.

    score = -T logsumexp(z / T), z the mean of the logits that the network gives when the feature map A [C, positions]
    of either of its last two stages is replaced by A - s₁ u₁ v₁ᵀ; shape [N], higher means more uncertain. Two forward
    passes.

    Exact, from the eigenvectors of the smaller Gram matrix; the authors' code also offers power iteration.
    """

    temperature: PositiveFloat = 1.0
    blocks: PositiveInt = 2
    layers: Names | None = None

    @property
    def needs(self):
        return (RankFeatLogits(self.blocks, self.layers),)

    def score(self, reps: Reps) -> Tensor:
        return -self.temperature * torch.logsumexp(reps[self.needs[0]].double() / self.temperature, 1)
