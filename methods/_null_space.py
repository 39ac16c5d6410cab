"""The subspace in which training features hardly vary, for residual and ViM."""

from __future__ import annotations

import torch
from torch import Tensor

from howsure.representations import HeadWeights

from ._rows import by_rows


def origin_and_null_space(features: Tensor, head: HeadWeights, dim: int | None) -> tuple[Tensor, Tensor]:
    """The origin `[D]` where the logits vanish (least squares), and an orthonormal basis `[D, D - dim]`.

    The basis spans all but the `dim` principal directions of the training features, relative to that origin. If `dim`
    is None, it is as in the paper 1000 for D >= 2048 and 512 for D >= 768, and D / 2 below; D / 2 is also used if `dim`
    leaves no direction.
    """
    d = features.shape[1]
    if dim is None:
        dim = 1000 if d >= 2048 else 512 if d >= 768 else d // 2
    if dim >= d:
        dim = d // 2
    origin = -torch.linalg.pinv(head.weight.double()) @ head.bias.double()
    centred = features.double() - origin
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors
    return origin, vectors[:, : d - dim]


def residual_norm(features: Tensor, origin: Tensor, null_space: Tensor) -> Tensor:
    """Norm of each row's projection onto the null space, `[N]`, float64."""
    return by_rows(lambda h: ((h.double() - origin) @ null_space).norm(dim=1), features)
