"""Gaussians of the classes that occur, restricted to directions that single-precision features can resolve."""

from __future__ import annotations

import torch
from torch import Tensor

from howsure import UserError
from howsure.gaussian import inverse_root, whitener

ROUNDING = torch.finfo(torch.float32).eps


def present_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means `[K, D]` of the K classes with images, and features minus their class's mean `[N, D]`, both float64."""
    x = features.double()
    _, index, counts = labels.long().unique(return_inverse=True, return_counts=True)
    groups = x[index.argsort(stable=True)].split(counts.tolist())
    means = torch.stack([group.mean(0) for group in groups])
    return means, x - means[index]


def whiten(centred: Tensor, shrinkage: float = 0.0) -> Tensor:
    """`W [D, K]`, float64, with `W Wᵀ` the pseudo-inverse of the covariance of centred rows `[N, D]`.

    Directions whose variance is below 1.2e-7 (single precision) of the largest are left out: there the network's own
    rounding would be magnified, as after a layer norm, whose outputs are linearly dependent. Raises UserError if no
    direction is left.
    """
    columns = whitener(centred, shrinkage)
    per_sd = columns.norm(dim=0)
    kept = per_sd > 0
    if bool(kept.any()):
        kept &= per_sd.square() <= per_sd[kept].amin().square() / ROUNDING
    return _not_empty(columns[:, kept])


def whiten_within(centred: Tensor, directions: Tensor, shrinkage: float = 0.0) -> Tensor:
    """The same within the span of `directions [D, K]`, where only directions without any variance are left out."""
    x = centred @ directions
    diagonal = directions.T @ (centred.square().mean(0)[:, None] * directions)
    return _not_empty(directions @ inverse_root((1 - shrinkage) * (x.T @ x) / len(x) + shrinkage * diagonal))


def _not_empty(columns: Tensor) -> Tensor:
    if not columns.any():
        raise UserError(
            "training features do not vary around their class means; fit on at least two different images of a class"
        )
    return columns
