"""The largest activations of an image, and their share of its sum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LARGEST_RATIO = 500.0


def percentile_of(values: Tensor, percentile: float, dim: int | None = None) -> Tensor:
    """The percentile (0 to 100) of all entries or along a dimension, with linear interpolation; float64."""
    return torch.as_tensor(np.percentile(values.double().numpy(), percentile, axis=dim))


def kept(features: Tensor, percentile: float) -> int:
    """How many of the D activations are above the percentile: `D - round(D * percentile / 100)`, at least one."""
    d = features.shape[1]
    return max(1, d - round(d * percentile / 100))


def largest(features: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Values and indices of the largest activations of each row, `[N, k]`, float64."""
    top = features.double().topk(kept(features, percentile), dim=1)
    return top.values, top.indices


def sum_ratio(features: Tensor, percentile: float) -> Tensor:
    """The sum of the activations over the sum of the largest ones, `[N, 1]`, float64.

    Negative activations count as 0, which changes nothing after a ReLU, for which the ratio is meant. It is 1 if no
    activation is positive, and at most 500, whose exponential is still finite.
    """
    positive = features.double().relu()
    top, _ = largest(positive, percentile)
    total = top.sum(1, keepdim=True)
    ratio = positive.sum(1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, ratio, 1.0).clamp(max=LARGEST_RATIO)
