"""The space that training features hardly enter, of residual and ViM."""

from __future__ import annotations

import torch
from torch import Tensor

from howsure import UserError
from howsure.representations import HeadWeights

from ._rows import by_rows


def origin_and_null_space(features: Tensor, head: HeadWeights, dim: int | None) -> tuple[Tensor, Tensor]:
    """Origin `[D]` at which the logits vanish (least squares), and an orthonormal basis `[D, D - dim]`.

    The basis spans all but the `dim` main directions of the training features seen from that origin. Left out, `dim` is
    the paper's 1000 from 2048 dimensions on, 512 from 768 on, and half of them below; so is what leaves no space.
    """
    d = features.shape[1]
    if dim is not None and dim < 0:
        raise UserError(f"dim = {dim} main directions: dim must not be negative")
    if dim is None:
        dim = 1000 if d >= 2048 else 512 if d >= 768 else d // 2
    if dim >= d:
        dim = d // 2
    origin = -torch.linalg.pinv(head.weight.double()) @ head.bias.double()
    centred = features.double() - origin
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors
    return origin, vectors[:, : d - dim]


def residual_norm(features: Tensor, origin: Tensor, null_space: Tensor) -> Tensor:
    """Norm of each row's part in the null space, `[N]`, float64."""
    return by_rows(lambda h: ((h.double() - origin) @ null_space).norm(dim=1), features)
