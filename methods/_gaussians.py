"""Gaussians of the classes that occur."""

from __future__ import annotations

from torch import Tensor


def present_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means `[K, D]` of the K classes with images, and features minus their class's mean `[N, D]`, both float64."""
    x = features.double()
    present, index, counts = labels.long().unique(return_inverse=True, return_counts=True)
    means = x.new_zeros(len(present), x.shape[1]).index_add_(0, index, x) / counts[:, None]
    return means, x - means[index]
