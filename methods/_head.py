"""The last layer applied to modified features."""

from __future__ import annotations

import torch
from torch import Tensor

from howsure.representations import HeadWeights

from ._rows import by_rows


def energy(features: Tensor, head: HeadWeights) -> Tensor:
    """`-logsumexp(W h + b)`, `[N]`, float64, for features `[N, D]`."""
    weight, bias = head.weight.double(), head.bias.double()
    return by_rows(lambda h: -torch.logsumexp(h.double() @ weight.T + bias, dim=1), features)
