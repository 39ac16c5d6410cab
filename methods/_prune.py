"""Which activations of an image are its largest, and how much of its sum they hold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from howsure import UserError

LARGEST_RATIO = 500.0


def percentile_of(values: Tensor, percentile: float, dim: int | None = None) -> Tensor:
    """The percentile (0 to 100) of all entries, or along a dimension, interpolated linearly; float64."""
    check(percentile)
    return torch.as_tensor(np.percentile(values.double().numpy(), percentile, axis=dim))


def check(percentile: float) -> None:
    """A percentile outside 0 to 100 is an error of the user's."""
    if not 0 <= percentile <= 100:
        raise UserError(f"a percentile of {percentile} is not between 0 and 100; give it in percent, such as 90")


def kept(features: Tensor, percentile: float) -> int:
    """How many of the D activations lie above the percentile: `D - round(D * percentile / 100)`, at least one."""
    check(percentile)
    d = features.shape[1]
    return max(1, d - round(d * percentile / 100))


def largest(features: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Values and indices of the largest activations of each row, `[N, k]`, float64."""
    top = features.double().topk(kept(features, percentile), dim=1)
    return top.values, top.indices


def sum_ratio(features: Tensor, percentile: float) -> Tensor:
    """Sum of the activations over that of the largest, `[N, 1]`, float64.

    Negative activations count as zero (no change for the outputs of a ReLU, for which the ratio is meant); it is 1
    where no activation is positive, and at most 500, whose exponential still is a number.
    """
    positive = features.double().relu()
    top, _ = largest(positive, percentile)
    total = top.sum(1, keepdim=True)
    ratio = positive.sum(1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, ratio, 1.0).clamp(max=LARGEST_RATIO)
