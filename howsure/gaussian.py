"""Class-conditional Gaussians with a tied covariance, and Mahalanobis distances, also for singular covariances."""

from __future__ import annotations

import torch
from torch import Tensor


def class_means(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean of each class, `[num_classes, D]`, float64; a class without rows gets the mean of all rows."""
    x = x.double()
    counts = torch.bincount(labels, minlength=num_classes).unsqueeze(1)
    sums = torch.zeros(num_classes, x.shape[1], dtype=x.dtype).index_add_(0, labels, x)
    return torch.where(counts > 0, sums / counts.clamp_min(1), x.mean(0))


def whitener(centred: Tensor, shrinkage: float = 0.0) -> Tensor:
    """`W [D, D]`, float64, with `W Wᵀ` the (pseudo-)inverse covariance of centred rows `[N, D]`.

    `shrinkage` in [0, 1] is the weight of the covariance's own diagonal. Directions without variance are left out, as
    the pseudo-inverse does.
    """
    centred = centred.double()
    covariance = centred.T @ centred / len(centred)
    return inverse_root((1 - shrinkage) * covariance + shrinkage * torch.diag(covariance.diagonal()))


def inverse_root(covariance: Tensor) -> Tensor:
    """`W [D, D]` with `W Wᵀ` the (pseudo-)inverse of a covariance `[D, D]`, float64."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1:].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    scale = torch.where(values > floor, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    return vectors * scale


def sq_distances(x: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    """Squared Mahalanobis distances `[N, K]`, float64, of rows `[N, D]` to means `[K, D]`."""
    centre = means.mean(0)
    a, b = (x.double() - centre) @ whiten, (means - centre) @ whiten
    return (a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)).clamp_min(0)
