"""Deep ensembles, and the representation they score: the logits of every member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from howsure import Batch, Method, Network, Representation, Reps

from ._passes import mutual_information, predictive_entropy


@dataclass(frozen=True)
class MemberLogits(Representation[Tensor]):
    """Logits of the network and of its `members`, `[N, 1 + members, C]`."""

    cost = "passes"

    def skip(self, network: Network) -> str | None:
        return None if network.members else "an ensemble needs at least two networks; the backbone has no members"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([batch.logits, *(member(batch.images) for member in batch.network.members)], 1)


@dataclass(frozen=True)
class Ensemble(Method):
    """Deep ensemble. Lakshminarayanan et al., 2017, arXiv:1612.01474.

    score = H(mean_m p_m) ("entropy"), or H(mean_m p_m) - mean_m H(p_m) ("mutual_information"), over independently
    trained networks; shape [N], higher means more uncertain. One forward pass per network.
    """

    measure: Literal["entropy", "mutual_information"] = "entropy"

    needs = (MemberLogits(),)

    def score(self, reps: Reps) -> Tensor:
        measure = predictive_entropy if self.measure == "entropy" else mutual_information
        return measure(reps[self.needs[0]])
