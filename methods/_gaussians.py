"""Gaussians of the classes that occur."""

from __future__ import annotations

from torch import Tensor

from howsure.gaussian import class_means


def present_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means `[K, D]` of the K classes with images, and features minus their class's mean `[N, D]`, both float64."""
    present, index = labels.long().unique(return_inverse=True)
    means = class_means(features, index, len(present))
    return means, features.double() - means[index]
